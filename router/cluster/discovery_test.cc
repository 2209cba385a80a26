#include "router/cluster/discovery.h"

#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;

TEST(Discovery, ListedAddressesComeSortedAndOnce) {
  const auto discovery = MakeDiscovery({"b:2", "a:1", "b:2", "[::1]:3"});
  ASSERT_TRUE(discovery.ok()) << discovery.status();
  EXPECT_THAT((*discovery)->Resolve().addresses, ElementsAre("[::1]:3", "a:1", "b:2"));
}

TEST(Discovery, ADnsNameGivesItsAddressesWithThePort) {
  const auto discovery = MakeDiscovery({"dns:///localhost:50061"});
  ASSERT_TRUE(discovery.ok()) << discovery.status();
  const auto found = (*discovery)->Resolve();
  EXPECT_TRUE(found.errors.empty());
  EXPECT_THAT(found.addresses, Contains("127.0.0.1:50061"));
}

TEST(Discovery, ANameThatCannotBeResolvedKeepsItsLastAddressesAndTouchesNoOther) {
  using Addresses = std::vector<std::string>;
  std::map<std::string, StatusOr<Addresses>> dns = {{"a", Unavailable("no such host a")},
                                                    {"b", Addresses{"10.0.0.2:1"}}};
  const auto discovery = MakeDiscovery({"10.0.0.1:1", "dns:///a:1", "dns:///b:1"},
                                       [&dns](const HostPort& name) { return dns.at(name.host); });
  ASSERT_TRUE(discovery.ok()) << discovery.status();
  const auto resolve = [&] { return (*discovery)->Resolve(); };
  const Discovered first = resolve();
  EXPECT_THAT(first.addresses, ElementsAre("10.0.0.1:1", "10.0.0.2:1"));
  ASSERT_EQ(first.errors.size(), 1u);
  EXPECT_EQ(Message(first.errors[0]), "no such host a");

  dns.at("a") = Addresses{"10.0.0.3:1", "10.0.0.4:1"};
  EXPECT_THAT(resolve().addresses, ElementsAre("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"));

  dns.at("a") = Addresses{};
  dns.at("b") = Unavailable("timeout");
  const Discovered kept = resolve();
  EXPECT_THAT(kept.addresses, ElementsAre("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"));
  EXPECT_EQ(kept.errors.size(), 2u);

  dns.at("a") = Addresses{"10.0.0.4:1"};
  EXPECT_THAT(resolve().addresses, ElementsAre("10.0.0.1:1", "10.0.0.2:1", "10.0.0.4:1"))
      << "an answer replaces";
}

TEST(Discovery, MalformedAddressesAreRefused) {
  for (const char* bad :
       {"", "host", "host:", ":1", "host:0", "host:65536", "host:1x", "http://host:1", "a b:1"}) {
    EXPECT_EQ(MakeDiscovery({bad}).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace terrace
