#include "router/cluster/discovery.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>

#include "base/fake_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(Discovery, ListedAddressesComeSortedAndOnce) {
  const auto discoveries = MakeDiscoveries({"b:2", "a:1", "b:2", "[::1]:3"});
  ASSERT_TRUE(discoveries.ok()) << discoveries.status();
  EXPECT_THAT(discoveries->at("")->Resolve().addresses, ElementsAre("[::1]:3", "a:1", "b:2"));
}

TEST(Discovery, ADnsNameGivesItsAddressesWithThePort) {
  const auto discoveries = MakeDiscoveries({"dns:///localhost:8101"});
  ASSERT_TRUE(discoveries.ok()) << discoveries.status();
  const auto found = discoveries->at("dns:///localhost:8101")->Resolve();
  EXPECT_TRUE(found.errors.empty());
  EXPECT_THAT(found.addresses, Contains("127.0.0.1:8101"));
}

TEST(Discovery, NamesAndFilesAreEachLookedAtForThemselves) {
  const auto discoveries = MakeDiscoveries({"dns:///a:1", "srv:///_grpc._tcp.w", "file:///w", "b:1", "c:1"});
  ASSERT_TRUE(discoveries.ok()) << discoveries.status();
  std::map<std::string, bool> asks_names;
  for (const auto& [entry, discovery] : *discoveries) asks_names[entry] = discovery->asks_names();
  EXPECT_THAT(asks_names, ElementsAre(Pair("", false), Pair("dns:///a:1", true), Pair("file:///w", false),
                                      Pair("srv:///_grpc._tcp.w", true)));
}

TEST(Discovery, TooManyNamesAreRefused) {
  std::vector<std::string> workers;
  for (size_t i = 0; i < kMostNames; ++i) workers.push_back(Concat("dns:///w", i, ":1"));
  EXPECT_TRUE(MakeDiscoveries(workers).ok());
  workers.push_back("w:1");  // no name
  EXPECT_TRUE(MakeDiscoveries(workers).ok());
  workers.push_back("dns:///w:1");
  EXPECT_EQ(MakeDiscoveries(workers).status().code(), StatusCode::kInvalidArgument);
}

// DNS as a test writes it, and a list of workers that asks it.
class NamesTest : public ::testing::Test {
 protected:
  using Addresses = std::vector<std::string>;

  void Make(const std::vector<std::string>& workers) {
    auto made = MakeDiscoveries(workers,
                                {.look_up =
                                     [this](const HostPort& name) {
                                       const auto found = dns_.find(name.host);
                                       return found == dns_.end()
                                                  ? StatusOr<Addresses>(NotFound("no such name ", name.host))
                                                  : WithPort(found->second, name.port);
                                     },
                                 .look_up_srv = [this](const std::string& name) { return srv_.at(name); },
                                 .clock = clock_},
                                discoveries_);
    ASSERT_TRUE(made.ok()) << made.status();
    discoveries_ = *std::move(made);
  }
  static StatusOr<Addresses> WithPort(StatusOr<Addresses> hosts, uint16_t port) {
    if (hosts.ok()) {
      for (std::string& host : *hosts) host = HostPort{host, port}.ToString();
    }
    return hosts;
  }
  // What all find together when they look again.
  Discovered Resolve() {
    clock_.Advance(std::chrono::seconds(10));
    Discovered all;
    for (const auto& [entry, discovery] : discoveries_) {
      const Discovered found = discovery->Resolve();
      std::ranges::copy(found.addresses, std::back_inserter(all.addresses));
      std::ranges::copy(found.errors, std::back_inserter(all.errors));
    }
    std::ranges::sort(all.addresses);
    return all;
  }

  FakeClock clock_;
  std::map<std::string, StatusOr<Addresses>> dns_;
  std::map<std::string, StatusOr<std::vector<HostPort>>> srv_;
  Discoveries discoveries_;  // what is made knows those before
};

TEST_F(NamesTest, ANameThatCannotBeResolvedKeepsItsLastAddressesAndTouchesNoOther) {
  dns_ = {{"a", Unavailable("timeout")}, {"b", Addresses{"10.0.0.2"}}};
  Make({"10.0.0.1:1", "dns:///a:1", "dns:///b:1"});
  const Discovered first = Resolve();
  EXPECT_THAT(first.addresses, ElementsAre("10.0.0.1:1", "10.0.0.2:1"));
  ASSERT_EQ(first.errors.size(), 1u);
  EXPECT_EQ(Message(first.errors[0]), "timeout");

  dns_.at("a") = Addresses{"10.0.0.3", "10.0.0.4"};
  EXPECT_THAT(Resolve().addresses, ElementsAre("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"));

  dns_.at("a") = Addresses{};
  dns_.at("b") = Unavailable("timeout");
  const Discovered kept = Resolve();
  EXPECT_THAT(kept.addresses, ElementsAre("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"));
  EXPECT_EQ(kept.errors.size(), 2u);

  dns_.at("a") = Addresses{"10.0.0.4"};
  EXPECT_THAT(Resolve().addresses, ElementsAre("10.0.0.1:1", "10.0.0.2:1", "10.0.0.4:1"))
      << "an answer replaces";
}

TEST_F(NamesTest, AnEntryThatStaysKeepsWhatItHasFound) {
  dns_ = {{"a", Addresses{"10.0.0.1"}}, {"b", Addresses{"10.0.0.2"}}};
  srv_ = {{"_grpc._tcp.w", std::vector<HostPort>{{"b", 7}}}};
  Make({"dns:///a:1", "dns:///b:1", "srv:///_grpc._tcp.w"});
  EXPECT_FALSE(discoveries_.at("dns:///a:1")->latest().has_value()) << "it has not looked";
  Resolve();
  dns_ = {{"a", Unavailable("timeout")}, {"b", Unavailable("timeout")}, {"c", Unavailable("timeout")}};
  srv_.at("_grpc._tcp.w") = Unavailable("timeout");
  Make({"dns:///a:1", "srv:///_grpc._tcp.w", "dns:///c:1", "10.0.0.9:1"});
  ASSERT_TRUE(discoveries_.at("dns:///a:1")->latest().has_value()) << "without another look";
  EXPECT_THAT(discoveries_.at("dns:///a:1")->latest()->addresses, ElementsAre("10.0.0.1:1"));
  EXPECT_THAT(Resolve().addresses, ElementsAre("10.0.0.1:1", "10.0.0.2:7", "10.0.0.9:1"));
}

TEST_F(NamesTest, AnOutageOfDnsKeepsTheAddressesForHours) {
  dns_ = {{"a", Addresses{"10.0.0.1"}}};
  Make({"dns:///a:1"});
  Resolve();
  for (const StatusOr<Addresses>& answer :
       {StatusOr<Addresses>(Unavailable("SERVFAIL")), StatusOr<Addresses>(Addresses{})}) {
    dns_.at("a") = answer;
    for (int i = 0; i < 1000; ++i) ASSERT_THAT(Resolve().addresses, ElementsAre("10.0.0.1:1"));
  }
}

TEST_F(NamesTest, ANameThatDoesNotExistLosesItsAddressesAfterTenMinutes) {
  dns_ = {{"a", Addresses{"10.0.0.1"}}};
  Make({"dns:///a:1", "dns:///b:1"});
  Resolve();
  const auto miss = [&](int times) {
    dns_.erase("a");
    for (int i = 0; i < times; ++i) ASSERT_THAT(Resolve().addresses, ElementsAre("10.0.0.1:1")) << i;
  };
  miss(60);  // the first of them begins the 10 minutes
  dns_.insert({"a", Addresses{}});
  Resolve();  // it exists
  miss(59);
  dns_.insert({"a", Unavailable("timeout")});
  Resolve();  // who knows
  dns_.erase("a");
  EXPECT_THAT(Resolve().addresses, IsEmpty());
  dns_.insert({"a", Addresses{"10.0.0.2"}});
  EXPECT_THAT(Resolve().addresses, ElementsAre("10.0.0.2:1"));
}

TEST_F(NamesTest, AnSrvNameGivesEveryAddressOfItsTargetsWithTheirPorts) {
  srv_ = {{"_grpc._tcp.w", std::vector<HostPort>{{"pod-0", 7}, {"pod-1", 8}, {"pod-0", 7}}}};
  dns_ = {{"pod-0", Addresses{"10.0.0.1"}}, {"pod-1", Addresses{"10.0.0.2", "::1"}}};
  Make({"srv:///_grpc._tcp.w", "10.0.0.9:1"});
  const Discovered found = Resolve();
  EXPECT_THAT(found.errors, IsEmpty());
  EXPECT_THAT(found.addresses, ElementsAre("10.0.0.1:7", "10.0.0.2:8", "10.0.0.9:1", "[::1]:8"));

  srv_.at("_grpc._tcp.w") = std::vector<HostPort>{{"pod-1", 9}};
  EXPECT_THAT(Resolve().addresses, ElementsAre("10.0.0.2:9", "10.0.0.9:1", "[::1]:9"));
}

TEST_F(NamesTest, WhatOfAnSrvNameCannotBeLookedUpIsKept) {
  srv_ = {{"_grpc._tcp.w", std::vector<HostPort>{{"pod-0", 7}, {"pod-1", 8}}}};
  dns_ = {{"pod-0", Addresses{"10.0.0.1"}}, {"pod-1", Addresses{"10.0.0.2"}}};
  Make({"srv:///_grpc._tcp.w"});
  Resolve();
  dns_.at("pod-0") = Unavailable("timeout");
  dns_.at("pod-1") = Addresses{"10.0.0.3"};
  const Discovered half = Resolve();
  EXPECT_THAT(half.addresses, ElementsAre("10.0.0.1:7", "10.0.0.3:8"));
  EXPECT_EQ(half.errors.size(), 1u);

  for (const auto& answer : {StatusOr<std::vector<HostPort>>(Unavailable("SERVFAIL")),
                             StatusOr<std::vector<HostPort>>(std::vector<HostPort>{}),
                             StatusOr<std::vector<HostPort>>(NotFound("gone"))}) {
    srv_.at("_grpc._tcp.w") = answer;
    const Discovered kept = Resolve();
    EXPECT_THAT(kept.addresses, ElementsAre("10.0.0.1:7", "10.0.0.3:8"));
    EXPECT_EQ(kept.errors.size(), 2u) << "and pod-0";
  }
}

TEST_F(NamesTest, TargetsThatWentAwayStayUntilThoseThatCameAreFound) {
  srv_ = {{"_grpc._tcp.w", std::vector<HostPort>{{"old-0", 7}, {"old-1", 7}}}};
  dns_ = {{"old-0", Addresses{"10.0.0.1"}},
          {"old-1", Addresses{"10.0.0.2"}},
          {"new-0", Addresses{"10.0.1.1"}},
          {"new-1", Unavailable("timeout")}};
  Make({"srv:///_grpc._tcp.w"});
  Resolve();
  srv_.at("_grpc._tcp.w") = std::vector<HostPort>{{"new-0", 7}, {"new-1", 7}};
  EXPECT_THAT(Resolve().addresses, ElementsAre("10.0.0.1:7", "10.0.0.2:7", "10.0.1.1:7"));
  dns_.at("new-1") = Addresses{"10.0.1.2"};
  EXPECT_THAT(Resolve().addresses, ElementsAre("10.0.1.1:7", "10.0.1.2:7"));
}

TEST_F(NamesTest, AFileIsReadAgainAtOnce) {
  const std::string path = ::testing::TempDir() + "discovery_test.workers";
  std::ofstream(path) << "b:2\na:1\n";
  Make({"file://" + path});
  EXPECT_THAT(Resolve().addresses, ElementsAre("a:1", "b:2"));
  std::ofstream(path) << "c:3\n";
  EXPECT_THAT(Resolve().addresses, ElementsAre("c:3"));
  std::ofstream(path) << "half a li";
  const Discovered kept = Resolve();
  EXPECT_THAT(kept.addresses, ElementsAre("c:3"));
  EXPECT_EQ(kept.errors.size(), 1u);
}

TEST(Discovery, MalformedAddressesAreRefused) {
  for (const char* bad :
       {"", "host", "host:", ":1", "host:0", "host:65536", "host:1x", "http://host:1", "a b:1", "dns:///host",
        "srv:///", "srv:///a b", "srv:///a:1", "srv://a/b", "file:///", "file://workers", "file:workers"}) {
    EXPECT_EQ(MakeDiscoveries({bad}).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace terrace
