// How ranks meet: the leader's side and the others', over gRPC in one process.
#include "worker/server/ranks_service.h"

#include <future>
#include <thread>

#include "base/build_id.h"
#include "base/version.h"
#include "gmock/gmock.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "worker/server/join_call.h"
#include "worker/server/meet_group.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::RankHello Hello(uint32_t rank, uint32_t ranks) {
  v1::RankHello hello;
  hello.set_protocol(v1::RANKS_PROTOCOL_CURRENT);
  hello.set_version("1.2.3");
  hello.set_rank(rank);
  hello.set_ranks(ranks);
  hello.set_model_digest("d1");
  for (const char* name : {"engine.compute", "kv.dtype"}) {
    v1::RankSetting& setting = *hello.add_settings();
    setting.set_name(name);
    setting.set_value("auto");
  }
  return hello;
}

bool Never() { return false; }

struct Leader {
  explicit Leader(uint32_t ranks) : service(Hello(0, ranks)) {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service);
    server = builder.BuildAndStart();
  }
  ~Leader() {
    service.Stop();
    server->Shutdown(std::chrono::system_clock::now());
  }
  std::unique_ptr<JoinCall> Call(const v1::RankHello& hello) {
    return std::make_unique<JoinCall>(server->InProcessChannel({}), hello);
  }
  std::future<StatusOr<std::vector<std::string>>> Tell(const std::string& mine) {
    return std::async(std::launch::async, [this, mine] { return service.Tell(mine, Never); });
  }

  RanksService service;
  std::unique_ptr<grpc::Server> server;
};

std::future<StatusOr<std::vector<std::string>>> TellOf(JoinCall& call, const std::string& mine) {
  return std::async(std::launch::async, [&call, mine] { return call.Tell(mine, Never); });
}

TEST(RanksService, InEachRoundEveryRankHearsWhatAllHaveTold) {
  Leader leader(3);
  const auto one = leader.Call(Hello(1, 3)), two = leader.Call(Hello(2, 3));
  for (const std::string round : {"a", "", "c"}) {
    auto leads = leader.Tell(round + "0");
    auto second = TellOf(*two, round + "2"), first = TellOf(*one, round + "1");
    for (auto* const heard : {&leads, &first, &second}) {
      const auto all = heard->get();
      ASSERT_TRUE(all.ok()) << all.status();
      EXPECT_THAT(*all, ElementsAre(round + "0", round + "1", round + "2"));
    }
  }
}

TEST(RanksService, WhoDiffersIsRefusedWithWhatDiffers) {
  Leader leader(4);
  const struct {
    std::function<void(v1::RankHello&)> change;
    const char* message;
  } cases[] = {
      {[](auto& hello) { hello.set_protocol(99); }, "the protocol of ranks is 99 at rank 1, "},
      {[](auto& hello) { hello.set_version("1.2.4"); }, "the version is 1.2.4 at rank 1, 1.2.3 at rank 0"},
      {[](auto& hello) { hello.set_ranks(2); }, "group.ranks is 2 at rank 1, 4 at rank 0"},
      {[](auto& hello) { hello.set_rank(4); }, "group.rank is 4, of 1 to 3"},
      {[](auto& hello) { hello.set_rank(0); }, "group.rank is 0, of 1 to 3"},
      {[](auto& hello) { hello.set_model_digest("d2"); }, "the model's digest is d2 at rank 1, d1 at rank 0"},
      {[](auto& hello) { hello.mutable_settings(1)->set_value("int8"); },
       "kv.dtype is int8 at rank 1, auto at rank 0"},
      {[](auto& hello) { hello.mutable_settings(0)->set_name("engine.x"); }, "a setting is engine.x"},
      {[](auto& hello) { hello.mutable_settings()->RemoveLast(); }, "the number of settings is 1"}};
  for (const auto& each : cases) {
    v1::RankHello hello = Hello(1, 4);
    each.change(hello);
    const Status refused = leader.Call(hello)->Tell("", Never).status();
    EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition) << each.message;
    EXPECT_EQ(Reason(refused), "ranks_differ") << each.message;
    EXPECT_THAT(Message(refused), HasSubstr(each.message));
  }
}

// Two processes say that they are rank 1: the one that comes first, whichever that is, keeps its place.
TEST(RanksService, ARankIsOneProcess) {
  Leader leader(3);
  const auto one = leader.Call(Hello(1, 3)), other = leader.Call(Hello(1, 3)), two = leader.Call(Hello(2, 3));
  auto first = TellOf(*one, "1"), second = TellOf(*other, "1");
  auto leads = leader.Tell("0");
  // Rank 2 comes when one of them has been refused.
  while (first.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready &&
         second.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready) {
  }
  const Status joined = TellOf(*two, "2").get().status();
  EXPECT_EQ(joined, Status());
  EXPECT_TRUE(leads.get().ok());
  const Status ends[] = {first.get().status(), second.get().status()};
  EXPECT_NE(ends[0].ok(), ends[1].ok());
  const Status& refused = ends[0].ok() ? ends[1] : ends[0];
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(refused), "rank_taken");
}

TEST(RanksService, ARankThatGoesBeforeTheGroupIsWholeMayComeBack) {
  Leader leader(3);
  auto leads = leader.Tell("0");
  static_cast<void>(leader.Call(Hello(1, 3))->Tell("1", [] { return true; }));
  // The first one may not be missed at once. Who is let in hears nothing until rank 2 is there.
  std::unique_ptr<JoinCall> one;
  std::future<StatusOr<std::vector<std::string>>> first;
  do {
    one = leader.Call(Hello(1, 3));
    first = TellOf(*one, "1");
  } while (first.wait_for(std::chrono::milliseconds(300)) == std::future_status::ready &&
           Reason(first.get().status()) == "rank_taken");
  ASSERT_TRUE(first.valid());
  const auto two = leader.Call(Hello(2, 3));
  EXPECT_TRUE(TellOf(*two, "2").get().ok());
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(leads.get().ok());
}

TEST(RanksService, ARankThatGoesLaterIsTheEndOfTheGroup) {
  Leader leader(3);
  auto one = leader.Call(Hello(1, 3)), two = leader.Call(Hello(2, 3));
  auto leads = leader.Tell("0"), first = TellOf(*one, "1"), second = TellOf(*two, "2");
  EXPECT_TRUE(leads.get().ok() && first.get().ok() && second.get().ok());
  EXPECT_EQ(leader.service.FindLost(), Status());
  EXPECT_EQ(one->FindEnd(), Status());
  two.reset();
  Status found;
  while (found.ok()) {  // until the news has come
    std::this_thread::yield();
    found = leader.service.FindLost();
  }
  EXPECT_THAT(Message(found), HasSubstr("rank 2 has left the group"));
  const Status lost = leader.Tell("0").get().status();
  EXPECT_EQ(lost.code(), StatusCode::kUnavailable);
  EXPECT_THAT(Message(lost), HasSubstr("rank 2 has left the group"));
  EXPECT_THAT(Message(leader.Call(Hello(2, 3))->Tell("", Never).status()), HasSubstr("rank 2 has left"));
  leader.service.Stop();
  const Status end = one->Tell("1", Never).status();
  EXPECT_EQ(end.code(), StatusCode::kUnavailable);
  EXPECT_EQ(one->FindEnd(), end);
}

TEST(RanksService, WhoWaitsCanBeCancelled) {
  Leader leader(2);
  const auto always = [] { return true; };
  EXPECT_EQ(leader.service.Tell("0", always).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(leader.Call(Hello(1, 2))->Tell("1", always).status().code(), StatusCode::kCancelled);
}

// Over the network, as processes of different builds would meet.
TEST(MeetGroup, ARankOfAnotherProtocolBuildOrTransportIsRefused) {
  const struct {
    std::function<void(v1::RankHello&)> change;  // of the leader's
    std::string message;
  } cases[] = {
      {[](auto& hello) { hello.set_protocol(99); },
       Concat("the protocol of ranks is ", int{v1::RANKS_PROTOCOL_CURRENT}, " at rank 1, 99 at rank 0")},
      {[](auto& hello) { hello.set_version("0.0.1"); },
       Concat("the version is ", kVersion, " at rank 1, 0.0.1 at rank 0")},
      {[](auto& hello) { hello.mutable_settings(0)->set_value("feed"); },
       Concat("the build is ", OwnBuildId(), " at rank 1, feed at rank 0")},
      {[](auto& hello) { hello.mutable_settings(1)->set_value("gloo"); },
       "group.transport is tcp at rank 1, gloo at rank 0"}};
  for (const auto& each : cases) {
    v1::RankHello hello = Hello(0, 2);
    hello.set_version(kVersion);
    hello.mutable_settings(0)->set_name("the build");
    hello.mutable_settings(0)->set_value(OwnBuildId());
    hello.mutable_settings(1)->set_name("group.transport");
    hello.mutable_settings(1)->set_value("tcp");
    each.change(hello);
    RanksService service(hello);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service);
    const auto server = builder.BuildAndStart();
    const GroupEndpoint endpoint{
        .leader = Concat("127.0.0.1:", port), .host = "127.0.0.1", .transport = Transport::kTcp};
    const Status refused = MeetGroup(endpoint, 1, 2, {.model_digest = "d1", .settings = {}}, Never).status();
    EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(Reason(refused), "ranks_differ");
    EXPECT_THAT(Message(refused), HasSubstr(each.message));
    service.Stop();
    server->Shutdown(std::chrono::system_clock::now());
  }
}

TEST(ListenAddress, ANameStandsForAllAddressesOfTheMachine) {
  EXPECT_EQ(ListenAddress("127.0.0.1:8201"), "127.0.0.1:8201");
  EXPECT_EQ(ListenAddress("localhost:8201"), "localhost:8201");
  EXPECT_EQ(ListenAddress("10.1.2.3:8201"), "10.1.2.3:8201");
  EXPECT_EQ(ListenAddress("0.0.0.0:8201"), "0.0.0.0:8201");
  EXPECT_EQ(ListenAddress("[fd00::1]:8201"), "[fd00::1]:8201");
  EXPECT_EQ(ListenAddress("group-0.models.svc:8201"), "[::]:8201");
}

}  // namespace
}  // namespace terrace
