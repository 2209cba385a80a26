#include "worker/server/stop_engine.h"

#include <cstdlib>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/fake_clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/fake_executor.h"
#include "worker/engine/step_gate.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;

constexpr Duration kLimit = std::chrono::seconds(10);

// An engine in the middle of a step that does not return before the gate opens.
struct HungEngine {
  HungEngine() {
    SequenceSpec spec;
    spec.prompt = {1};
    spec.max_tokens = 100;
    CHECK(engine.Submit(std::move(spec), sink).ok());
    gate.AwaitStep(1);
  }

  StepGate gate;
  FakeClock clock;
  std::shared_ptr<CollectingSink> sink = std::make_shared<CollectingSink>();
  Engine engine{{.scheduler = {.max_sequences = 4,
                               .max_step_tokens = 16,
                               .context_length = 256,
                               .vocab_size = 1000,
                               .block_tokens = 16,
                               .blocks = 64}},
                std::make_unique<FakeExecutor>(
                    FakeExecutor::Options{.before_step = [this](const StepPlan&) { gate.Pass(); }}),
                clock};
};

// Says what time it is by how often (from 1) it was looked at.
class ScriptedClock : public Clock {
 public:
  explicit ScriptedClock(std::function<MonoTime(int look)> script) : script_(std::move(script)) {}
  MonoTime Now() const override { return script_(++looks_); }

 private:
  const std::function<MonoTime(int look)> script_;
  mutable int looks_ = 0;
};

TEST(StopEngine, OfAStepThatHasStalledIsToldOnceAndThatStepIsWaitedFor) {
  HungEngine hung;
  const Duration since = kLimit + Duration(1);
  hung.clock.Advance(since);
  std::vector<Duration> told;
  const auto on_hang = [&](Duration since_last_step) {
    told.push_back(since_last_step);
    hung.gate.Open();
  };
  StopEngine(hung.engine, kLimit, on_hang, hung.clock);
  EXPECT_THAT(told, ElementsAre(since));
  EXPECT_EQ(Reason(hung.sink->Wait().result.error), "draining");
  StopEngine(hung.engine, kLimit, on_hang, hung.clock);
  EXPECT_EQ(told.size(), 1u) << "it has stopped";
}

TEST(StopEngine, AStepThatStallsWhileItIsWaitedForIsToldOnce) {
  HungEngine hung;
  const ScriptedClock clock([&, begin = hung.clock.Now()](int look) {
    if (look == 5) hung.gate.Open();
    return begin + look * (kLimit / 2);
  });
  std::vector<Duration> told;
  StopEngine(
      hung.engine, kLimit, [&](Duration since_last_step) { told.push_back(since_last_step); }, clock);
  EXPECT_THAT(told, ElementsAre(kLimit / 2 * 3));
}

TEST(StopEngine, AStepThatTakesNoLongerThanTheLimitIsWaitedFor) {
  HungEngine slow;
  const ScriptedClock clock([&, now = slow.clock.Now() + kLimit](int look) {
    if (look == 3) slow.gate.Open();
    return now;
  });
  StopEngine(
      slow.engine, kLimit, [](Duration) { ADD_FAILURE() << "it does not hang"; }, clock);
  EXPECT_EQ(Reason(slow.sink->Wait().result.error), "draining");
}

TEST(StopEngine, TheProcessCanEndWhileTheStepHangs) {
  const auto stop = [] {
    HungEngine hung;
    hung.clock.Advance(2 * kLimit);
    StopEngine(
        hung.engine, kLimit, [](Duration) { std::_Exit(69); }, hung.clock);
  };
  EXPECT_EXIT(stop(), ::testing::ExitedWithCode(69), "");
}

}  // namespace
}  // namespace terrace
