// A group of threads: what its leader tells, and how it ends.
#include "worker/engine/group_executor.h"

#include <future>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/parallel/local_communicator.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr Duration kLong = std::chrono::seconds(120);      // no rank misses it
constexpr Duration kShort = std::chrono::milliseconds(1);  // for ranks that never come

constexpr PlanLimits kLimits{
    .blocks = 4, .host_blocks = 0, .block_tokens = 1 << 20, .context_length = 1 << 20, .vocab_size = 1 << 20};

// Writes down which tokens it was given; step `fails_at` fails.
class Recorder : public Executor {
 public:
  Recorder(std::vector<std::vector<int32_t>>& steps, size_t fails_at = SIZE_MAX)
      : steps_(steps), fails_at_(fails_at) {}
  StepResult Run(const StepPlan& plan) override {
    if (steps_.size() == fails_at_) return {.outputs = {}, .device_error = Internal("out of order")};
    std::vector<int32_t>& step = steps_.emplace_back();
    for (const PlannedSequence& part : plan.sequences)
      step.insert(step.end(), part.tokens.begin(), part.tokens.end());
    return {.outputs = std::vector<SequenceOutput>(plan.sequences.size())};
  }

 private:
  std::vector<std::vector<int32_t>>& steps_;
  const size_t fails_at_;
};

struct FollowerThread {
  FollowerThread(Communicator& communicator, size_t fails_at = SIZE_MAX,
                 std::function<bool()> is_stopped = nullptr)
      : thread([this, &communicator, fails_at, is_stopped] {
          Recorder recorder(steps, fails_at);
          end = FollowLeader(communicator, recorder, kLimits, is_stopped);
        }) {}
  void Join() { thread.join(); }

  std::vector<std::vector<int32_t>> steps;
  Status end;
  std::thread thread;  // last: it uses the others
};

StepPlan PlanOf(const std::vector<int32_t>& tokens, const BlockTable& blocks) {
  StepPlan plan;
  plan.sequences.push_back({.id = 1, .tokens = tokens, .blocks = blocks});
  return plan;
}

TEST(GroupExecutor, EveryRankRunsEveryPlanUntilTheLeaderStops) {
  auto group = MakeLocalCommunicators(3, kLong);
  FollowerThread one(*group[1]), two(*group[2]);
  std::vector<std::vector<int32_t>> leader_steps;
  {
    GroupExecutor leader(*group[0], std::make_unique<Recorder>(leader_steps));
    // The last ones are longer than what is told at once.
    for (const size_t tokens : {1u, 5u, 1000u, 1022u, 3000u, 100'000u}) {
      std::vector<int32_t> words(tokens);
      for (size_t i = 0; i < tokens; ++i) words[i] = static_cast<int32_t>(i);
      EXPECT_EQ(leader.Run(PlanOf(words, {1, 2, 3})).device_error, Status());
      EXPECT_EQ(leader.Idle(), Status());
    }
  }
  one.Join();
  two.Join();
  EXPECT_EQ(leader_steps.size(), 6u);
  for (const FollowerThread* const each : {&one, &two}) {
    EXPECT_EQ(each->end, Status());
    EXPECT_EQ(each->steps, leader_steps);
  }
}

TEST(GroupExecutor, ARankThatNeverComesIsMissedInAStep) {
  const auto group = MakeLocalCommunicators(2, kShort);
  std::vector<std::vector<int32_t>> steps;
  GroupExecutor leader(*group[0], std::make_unique<Recorder>(steps));
  const std::vector<int32_t> tokens = {1};
  const Status lost = leader.Run(PlanOf(tokens, {0})).device_error;
  EXPECT_EQ(lost.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(lost), HasSubstr("rank 1"));
  EXPECT_TRUE(steps.empty());
}

TEST(GroupExecutor, ARankThatHasEndedIsMissedWithoutAStep) {
  auto group = MakeLocalCommunicators(2, kLong);
  std::vector<std::vector<int32_t>> steps;
  GroupExecutor leader(*group[0], std::make_unique<Recorder>(steps));
  ASSERT_TRUE(leader.idle_period().has_value());
  group[1].reset();
  Status kept;
  while (kept.ok()) kept = leader.Idle();  // it looks only now and then
  EXPECT_EQ(kept.code(), StatusCode::kUnavailable);
  EXPECT_THAT(Message(kept), HasSubstr("rank 1"));
}

TEST(GroupExecutor, ALeaderThatSaysNothingIsMissed) {
  const auto group = MakeLocalCommunicators(2, kShort);
  FollowerThread follower(*group[1]);
  follower.Join();
  EXPECT_EQ(follower.end.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(follower.end), HasSubstr("rank 0"));
}

TEST(GroupExecutor, ARankThatFailsEndsTheGroup) {
  const auto group = MakeLocalCommunicators(3, kLong);
  FollowerThread good(*group[1]), bad(*group[2], /*fails_at=*/1);
  std::vector<std::vector<int32_t>> steps;
  GroupExecutor leader(*group[0], std::make_unique<Recorder>(steps));
  const std::vector<int32_t> tokens = {1};
  Status lost;
  for (int step = 0; step < 3 && lost.ok(); ++step) lost = leader.Run(PlanOf(tokens, {0})).device_error;
  good.Join();
  bad.Join();
  EXPECT_EQ(bad.end.code(), StatusCode::kInternal);
  EXPECT_THAT(Message(lost), HasSubstr("rank 2"));
  EXPECT_FALSE(good.end.ok());
}

TEST(GroupExecutor, ALeaderThatFailsEndsTheGroup) {
  const auto group = MakeLocalCommunicators(2, kLong);
  FollowerThread follower(*group[1]);
  std::vector<std::vector<int32_t>> steps;
  GroupExecutor leader(*group[0], std::make_unique<Recorder>(steps, /*fails_at=*/0));
  const std::vector<int32_t> tokens = {1};
  EXPECT_EQ(leader.Run(PlanOf(tokens, {0})).device_error.code(), StatusCode::kInternal);
  follower.Join();
  EXPECT_EQ(follower.end.code(), StatusCode::kUnavailable);
}

TEST(GroupExecutor, ARankThatIsToldWhatItCannotRunEndsTheGroup) {
  const auto group = MakeLocalCommunicators(2, kLong);
  FollowerThread follower(*group[1]);
  std::vector<std::vector<int32_t>> steps;
  GroupExecutor leader(*group[0], std::make_unique<Recorder>(steps));
  const std::vector<int32_t> tokens = {1};
  static_cast<void>(leader.Run(PlanOf(tokens, {4})));
  follower.Join();
  EXPECT_EQ(follower.end.code(), StatusCode::kDataLoss);
  EXPECT_TRUE(follower.steps.empty());
}

TEST(ExecutorBesideGroup, TellsTheGroupAndLeavesItsErrorToTheNextStep) {
  const auto group = MakeLocalCommunicators(2, kShort);
  std::vector<std::vector<int32_t>> steps;
  ExecutorBesideGroup beside(*group[0], std::make_unique<Recorder>(steps));
  std::this_thread::sleep_for(kShort);
  const std::vector<int32_t> tokens = {1};
  EXPECT_EQ(beside.Run(PlanOf(tokens, {0})).device_error, Status());
  EXPECT_EQ(steps.size(), 1u);
  EXPECT_THAT(Message(group[0]->Barrier()), HasSubstr("broadcast")) << "nobody has heard it";
}

TEST(GroupExecutor, ARankThatIsToldToStopLeavesBetweenTwoFrames) {
  const auto group = MakeLocalCommunicators(2, kLong);
  FollowerThread follower(*group[1], SIZE_MAX, [] { return true; });
  follower.Join();
  EXPECT_EQ(follower.end.code(), StatusCode::kCancelled);
  std::vector<std::vector<int32_t>> steps;
  GroupExecutor leader(*group[0], std::make_unique<Recorder>(steps));
  const std::vector<int32_t> tokens = {1};
  EXPECT_THAT(Message(leader.Run(PlanOf(tokens, {0})).device_error), HasSubstr("asked to stop"));
}

}  // namespace
}  // namespace terrace
