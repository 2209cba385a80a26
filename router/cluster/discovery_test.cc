#include "router/cluster/discovery.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;

TEST(Discovery, ListedAddressesComeSortedAndOnce) {
  const auto discovery = MakeDiscovery({"b:2", "a:1", "b:2", "[::1]:3"});
  ASSERT_TRUE(discovery.ok()) << discovery.status();
  EXPECT_THAT(*(*discovery)->Resolve(), ElementsAre("[::1]:3", "a:1", "b:2"));
}

TEST(Discovery, ADnsNameGivesItsAddressesWithThePort) {
  const auto discovery = MakeDiscovery({"dns:///localhost:50061"});
  ASSERT_TRUE(discovery.ok()) << discovery.status();
  const auto found = (*discovery)->Resolve();
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(*found, Contains("127.0.0.1:50061"));
}

TEST(Discovery, MalformedAddressesAreRefused) {
  for (const char* bad :
       {"", "host", "host:", ":1", "host:0", "host:65536", "host:1x", "http://host:1", "a b:1"}) {
    EXPECT_EQ(MakeDiscovery({bad}).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace terrace
