#include <map>

#include "gtest/gtest.h"
#include "router/balance/balancer.h"

namespace terrace {
namespace {

RequestPtr AnyRequest() { return *Request::Make({.request_id = "r", .input = std::string("x")}); }

TEST(RoundRobinBalancer, GivesEveryReplicaTheSameShare) {
  const auto balancer = MakeRoundRobinBalancer();
  const Candidate candidates[] = {{.id = 7}, {.id = 3}, {.id = 9}};
  std::map<ReplicaId, int> picks;
  for (uint64_t rotation = 5; rotation < 5 + 30; ++rotation) {
    ++picks[*balancer->Pick(*AnyRequest(), candidates, rotation)];
  }
  EXPECT_EQ(picks, (std::map<ReplicaId, int>{{3, 10}, {7, 10}, {9, 10}}));
}

TEST(RoundRobinBalancer, TheSameArgumentsGiveTheSamePick) {
  const auto balancer = MakeRoundRobinBalancer();
  const Candidate candidates[] = {{.id = 1}, {.id = 2}};
  EXPECT_EQ(*balancer->Pick(*AnyRequest(), candidates, 3), *balancer->Pick(*AnyRequest(), candidates, 3));
}

TEST(RoundRobinBalancer, NobodyToPickIsNoCapacity) {
  const auto pick = MakeRoundRobinBalancer()->Pick(*AnyRequest(), {}, 0);
  EXPECT_EQ(pick.status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(pick.status()), "no_capacity");
}

}  // namespace
}  // namespace terrace
