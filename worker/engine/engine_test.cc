#include "worker/engine/engine.h"

#include <atomic>
#include <future>
#include <random>
#include <thread>

#include "base/fake_clock.h"
#include "gtest/gtest.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/fake_executor.h"
#include "worker/engine/step_gate.h"

namespace terrace {
namespace {

constexpr uint32_t kVocab = 1000;

Engine::Options SmallOptions() {
  Engine::Options options;
  options.scheduler = {.max_sequences = 4,
                       .max_step_tokens = 16,
                       .context_length = 256,
                       .vocab_size = kVocab,
                       .block_tokens = 16,
                       .blocks = 64,
                       .end_tokens = {}};
  options.inbox = 64;
  return options;
}

std::unique_ptr<Executor> GatedExecutor(StepGate& gate) {
  return std::make_unique<FakeExecutor>(
      FakeExecutor::Options{.before_step = [&gate](const StepPlan&) { gate.Pass(); }});
}

SequenceSpec Spec(uint32_t prompt, uint32_t max_tokens, uint64_t seed = 1) {
  SequenceSpec spec;
  spec.prompt.assign(prompt, 1);
  spec.max_tokens = max_tokens;
  spec.sampling.seed = seed;
  return spec;
}

std::vector<int32_t> WantedTokens(uint64_t seed, size_t count) {
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < count; ++i) tokens.push_back(FakeExecutor::AnswerToken(seed, i, kVocab));
  return tokens;
}

std::shared_ptr<CollectingSink> Submit(Engine& engine, SequenceSpec spec) {
  auto sink = std::make_shared<CollectingSink>();
  EXPECT_EQ(engine.Submit(std::move(spec), sink), Status());
  return sink;
}

TEST(Engine, EverySequenceOfManyThreadsEndsOnceWithItsOwnTokens) {
  const uint32_t seed = 20260;
  SCOPED_TRACE(Concat("seed ", seed));
  Engine engine(SmallOptions(), std::make_unique<FakeExecutor>(FakeExecutor::Options{}));
  std::atomic<uint64_t> accepted = 0;
  {
    std::vector<std::jthread> clients;
    for (uint32_t client = 0; client < 4; ++client) {
      clients.emplace_back([&, client] {
        std::mt19937 random(seed + client);
        std::vector<std::pair<uint64_t, std::shared_ptr<CollectingSink>>> sinks;
        for (int i = 0; i < 50; ++i) {
          const uint64_t sequence_seed = random();
          SequenceSpec spec = Spec(1 + random() % 100, 1 + random() % 20, sequence_seed);
          if (random() % 5 == 0)
            spec.deadline = RealClock().Now() + std::chrono::microseconds(random() % 3000);
          auto sink = std::make_shared<CollectingSink>();
          const Status submitted = engine.Submit(std::move(spec), sink);
          if (submitted.ok()) {
            ++accepted;
            sinks.emplace_back(sequence_seed, sink);
          } else {
            EXPECT_EQ(Reason(submitted), "overloaded");
          }
          if (random() % 4 == 0 && !sinks.empty()) sinks[random() % sinks.size()].second->Cancel();
        }
        for (const auto& [sequence_seed, sink] : sinks) {
          const auto answer = sink->Wait();
          EXPECT_EQ(answer.ids(), WantedTokens(sequence_seed, answer.tokens.size()));
          EXPECT_NE(answer.result.reason, FinishReason::kError);
        }
      });
    }
  }
  engine.Stop();
  const EngineStats stats = engine.Stats();
  EXPECT_EQ(stats.finished + stats.cancelled, accepted);
  EXPECT_EQ(stats.free_blocks + stats.cached_blocks, stats.total_blocks);
  EXPECT_TRUE(stats.is_idle);
}

TEST(Engine, ASequenceIsCancelledWithinOneStep) {
  StepGate gate;
  Engine engine(SmallOptions(), GatedExecutor(gate));
  const auto sink = Submit(engine, Spec(1, 100));
  for (int step = 1; step < 3; ++step) {
    gate.AwaitStep(step);
    gate.LetOneStep();
  }
  gate.AwaitStep(3);
  sink->Cancel();
  gate.LetOneStep();
  const auto answer = sink->Wait();
  EXPECT_EQ(answer.result.reason, FinishReason::kCancelled);
  EXPECT_EQ(answer.result.error.code(), StatusCode::kCancelled);
  EXPECT_EQ(answer.tokens.size(), 3u);
  EXPECT_EQ(gate.steps(), 3);
}

TEST(Engine, AFullInboxRefusesUntilDeadOrOverdueOnesHaveMadeRoom) {
  StepGate gate;
  FakeClock clock;
  Engine::Options options = SmallOptions();
  options.scheduler.max_sequences = 1;
  options.inbox = 3;
  Engine engine(options, GatedExecutor(gate), clock);
  const auto running = Submit(engine, Spec(1, 100));
  gate.AwaitStep(1);

  const auto closed = Submit(engine, Spec(1, 1)), other_closed = Submit(engine, Spec(1, 1));
  SequenceSpec overdue_spec = Spec(1, 1);
  overdue_spec.deadline = clock.Now() + std::chrono::seconds(1);
  const auto overdue = Submit(engine, overdue_spec);
  const Status refused = engine.Submit(Spec(1, 1), std::make_shared<CollectingSink>());
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(refused), "overloaded");

  closed->Cancel();
  other_closed->Cancel();
  gate.LetOneStep();
  gate.AwaitStep(2);
  EXPECT_EQ(closed->Wait().result.error.code(), StatusCode::kCancelled);
  EXPECT_EQ(other_closed->Wait().result.error.code(), StatusCode::kCancelled);
  EXPECT_EQ(engine.Stats().waiting, 1u);
  const auto later = Submit(engine, Spec(1, 2, 9));

  clock.Advance(std::chrono::seconds(1));
  gate.LetOneStep();
  gate.AwaitStep(3);
  EXPECT_EQ(overdue->Wait().result.error.code(), StatusCode::kDeadlineExceeded);
  EXPECT_DOUBLE_EQ(overdue->Wait().result.stats.queue_seconds, 1);

  gate.Open();
  EXPECT_EQ(running->Wait().tokens.size(), 100u);
  EXPECT_EQ(later->Wait().ids(), WantedTokens(9, 2));
}

TEST(Engine, DrainFinishesWhatItHasAndRefusesNew) {
  StepGate gate;
  FakeClock clock;  // stands still: nobody is handed over
  Engine engine(SmallOptions(), GatedExecutor(gate), clock);
  const auto first = Submit(engine, Spec(1, 5, 1)), second = Submit(engine, Spec(40, 5, 2));
  std::promise<EngineStats> drained;
  engine.Drain([&] { drained.set_value(engine.Stats()); });
  const Status refused = engine.Submit(Spec(1, 1), std::make_shared<CollectingSink>());
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(refused), "draining");
  gate.Open();
  const EngineStats stats = drained.get_future().get();
  EXPECT_EQ(stats.finished, 2u);
  EXPECT_TRUE(stats.is_idle);
  EXPECT_EQ(first->Wait().ids(), WantedTokens(1, 5));
  EXPECT_EQ(second->Wait().ids(), WantedTokens(2, 5));

  std::promise<void> again, stopped;
  engine.Drain([&] { again.set_value(); });
  again.get_future().get();
  engine.Stop();
  engine.Drain([&] { stopped.set_value(); });
  stopped.get_future().get();
}

// A reader that is too slow until the test says otherwise.
class SlowSink : public CollectingSink {
 public:
  bool is_full() const override { return is_stuck; }
  std::atomic<bool> is_stuck = false;
};

TEST(Engine, WhatADrainDoesNotFinishInTimeIsHandedOverWithAllItsTokens) {
  StepGate gate;
  FakeClock clock;
  Engine::Options options = SmallOptions();
  options.scheduler.max_sequences = 1;
  options.drain_seconds = 2;
  Engine engine(options, GatedExecutor(gate), clock);
  const auto running = Submit(engine, Spec(1, 200, 1)), waiting = Submit(engine, Spec(1, 200, 2));
  gate.AwaitStep(1);
  std::promise<void> drained;
  engine.Drain([&] { drained.set_value(); });
  const auto let_steps = [&](int first, int last) {
    for (int step = first; step <= last; ++step) {
      gate.LetOneStep();
      gate.AwaitStep(step + 1);
    }
  };
  let_steps(1, 3);
  clock.Advance(std::chrono::seconds(1));
  engine.Drain([] {});  // again: the first one counts
  let_steps(4, 5);
  clock.Advance(std::chrono::seconds(1));  // during step 6
  gate.LetOneStep();
  drained.get_future().get();
  EXPECT_EQ(gate.steps(), 6);
  const auto answer = running->Wait();
  EXPECT_EQ(answer.ids(), WantedTokens(1, 6));
  EXPECT_TRUE(waiting->Wait().tokens.empty());
  for (const auto& sink : {running, waiting}) {
    EXPECT_EQ(sink->Wait().result.reason, FinishReason::kCancelled);
    EXPECT_EQ(sink->Wait().result.error.code(), StatusCode::kUnavailable);
    EXPECT_EQ(Reason(sink->Wait().result.error), "draining");
  }

  // Another engine goes on.
  gate.Open();
  Engine peer(SmallOptions(), std::make_unique<FakeExecutor>(FakeExecutor::Options{}));
  SequenceSpec rest = Spec(1, 200, 1);
  rest.resume = answer.ids();
  const auto sink = std::make_shared<CollectingSink>(rest.resume.size());
  ASSERT_EQ(peer.Submit(rest, sink), Status());
  std::vector<int32_t> whole = answer.ids();
  for (const int32_t token : sink->Wait().ids()) whole.push_back(token);
  EXPECT_EQ(whole, WantedTokens(1, 200));
}

TEST(Engine, AHandOverDoesNotWaitForWhoIsPaused) {
  FakeClock clock;
  Engine::Options options = SmallOptions();
  options.drain_seconds = 0;
  Engine engine(options, std::make_unique<FakeExecutor>(FakeExecutor::Options{}), clock);
  const auto slow = std::make_shared<SlowSink>();
  slow->is_stuck = true;
  ASSERT_TRUE(engine.Submit(Spec(10, 40), slow).ok());
  std::promise<void> drained;
  engine.Drain([&] { drained.set_value(); });
  drained.get_future().get();
  EXPECT_EQ(Reason(slow->Wait().result.error), "draining");
  EXPECT_EQ(engine.Stats().held_blocks, 0u);
}

TEST(Engine, ALostDeviceEndsEverySequenceBehindItsTokensAndNothingRunsAnyMore) {
  StepGate gate;
  const Status broken = WithReason(Internal("x.cc:12: cudaLaunchKernel: unspecified"), "device_error");
  std::atomic<bool> is_broken = false;
  FakeExecutor::Options device{.before_step = [&](const StepPlan&) { gate.Pass(); },
                               .lose_device = [&] { return is_broken ? broken : Status(); }};
  Engine::Options options = SmallOptions();
  options.scheduler.max_sequences = 2;
  options.scheduler.audits = true;
  int told = 0;  // written by the loop thread, read after it has ended
  options.on_device_lost = [&](const Status& error) {
    EXPECT_EQ(error, broken);
    ++told;
  };
  Engine engine(options, std::make_unique<FakeExecutor>(std::move(device)));
  const auto first = Submit(engine, Spec(1, 200, 1));
  gate.AwaitStep(1);
  const auto second = Submit(engine, Spec(1, 200, 2)), waiting = Submit(engine, Spec(1, 200, 3));
  for (int step = 1; step <= 3; ++step) {
    gate.LetOneStep();
    gate.AwaitStep(step + 1);
  }
  EXPECT_EQ(engine.device_error(), Status());
  const auto in_the_inbox = Submit(engine, Spec(1, 200, 4));
  is_broken = true;
  gate.Open();
  const std::vector<std::shared_ptr<CollectingSink>> sinks = {first, second, waiting, in_the_inbox};
  for (const auto& sink : sinks) {
    const auto answer = sink->Wait();
    EXPECT_EQ(answer.result.reason, FinishReason::kCancelled);
    EXPECT_EQ(answer.result.error.code(), StatusCode::kUnavailable);
    EXPECT_EQ(Reason(answer.result.error), "device_lost");
  }
  EXPECT_EQ(first->Wait().ids(), WantedTokens(1, 3));
  EXPECT_EQ(second->Wait().ids(), WantedTokens(2, 2));
  EXPECT_EQ(Reason(engine.Submit(Spec(1, 1), first)), "draining");
  EXPECT_EQ(engine.device_error(), broken);
  std::promise<void> drained;
  engine.Drain([&] { drained.set_value(); });
  drained.get_future().get();
  engine.Stop();
  EXPECT_EQ(told, 1);
  const EngineStats stats = engine.Stats();
  EXPECT_TRUE(stats.is_device_lost);
  EXPECT_TRUE(stats.is_idle);
  EXPECT_EQ(stats.steps, 3u);
  EXPECT_EQ(stats.cancelled, 4u);
  EXPECT_EQ(stats.held_blocks, 0u);
}

TEST(Engine, StopEndsWhatRunsAndWhatWaits) {
  StepGate gate;
  Engine::Options options = SmallOptions();
  options.scheduler.max_sequences = 1;
  options.scheduler.context_length = 1 << 20;  // longer than any run of this test
  options.scheduler.blocks = 1 << 16;
  Engine engine(options, GatedExecutor(gate));
  const auto running = Submit(engine, Spec(1, 0));
  gate.AwaitStep(1);
  const auto waiting = Submit(engine, Spec(1, 1));
  std::promise<void> drained;
  engine.Drain([&] { drained.set_value(); });
  {
    std::jthread stopper([&] { engine.Stop(); });
    gate.Open();
  }
  for (const auto& sink : {running, waiting}) {
    EXPECT_EQ(sink->Wait().result.reason, FinishReason::kCancelled);
    EXPECT_EQ(sink->Wait().result.error.code(), StatusCode::kUnavailable);
  }
  drained.get_future().get();
  EXPECT_EQ(engine.Submit(Spec(1, 1), running).code(), StatusCode::kUnavailable);
  EXPECT_EQ(engine.Stats().cancelled, 2u);
  engine.Stop();
}

TEST(Engine, StopWithinGivesUpOnAStepThatDoesNotEnd) {
  StepGate gate;
  Engine engine(SmallOptions(), GatedExecutor(gate));
  const auto sink = Submit(engine, Spec(1, 100));
  gate.AwaitStep(1);
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(engine.StopWithin(Duration(1)));
  EXPECT_EQ(Reason(engine.Submit(Spec(1, 1), sink)), "draining");
  gate.Open();
  EXPECT_TRUE(engine.StopWithin(std::chrono::hours(1)));
  EXPECT_EQ(Reason(sink->Wait().result.error), "draining");
  EXPECT_TRUE(engine.StopWithin(Duration(0)));
  engine.Stop();
}

TEST(Engine, StatsTellAStepInProgressFromIdleness) {
  StepGate gate;
  FakeClock clock;
  Engine engine(SmallOptions(), GatedExecutor(gate), clock);
  EXPECT_TRUE(engine.Stats().is_idle);
  clock.Advance(std::chrono::seconds(5));
  const auto sink = Submit(engine, Spec(1, 1));
  gate.AwaitStep(1);
  clock.Advance(std::chrono::seconds(60));
  EngineStats stats = engine.Stats();
  EXPECT_FALSE(stats.is_idle);
  EXPECT_EQ(stats.running, 1u);
  EXPECT_EQ(stats.steps, 0u);
  EXPECT_EQ(clock.Now() - stats.last_step, std::chrono::seconds(60));
  gate.Open();
  sink->Wait();
  engine.Stop();
  stats = engine.Stats();
  EXPECT_TRUE(stats.is_idle);
  EXPECT_EQ(stats.steps, 1u);
}

TEST(Engine, StatsTellWhatAStepTakesAtTheFastestRateSoFar) {
  using std::chrono::seconds;
  StepGate gate;
  FakeClock clock;
  Engine::Options options = SmallOptions();
  options.scheduler.prefix_cache = false;  // the prompts begin alike
  Engine engine(options, GatedExecutor(gate), clock);
  const struct {
    uint32_t tokens;
    seconds usual, takes;
  } steps[] = {{1, seconds(0), seconds(6)},  // nothing is known
               {16, seconds(96), seconds(32)},
               {2, seconds(4), seconds(60)},  // a slow one says nothing
               {2, seconds(4), seconds(1)}};
  int number = 0;
  for (const auto& step : steps) {
    const auto sink = Submit(engine, Spec(step.tokens, 1, ++number));
    gate.AwaitStep(number);
    EXPECT_EQ(engine.Stats().usual_step, step.usual) << number;
    clock.Advance(step.takes);
    gate.LetOneStep();
    sink->Wait();
  }
}

TEST(Engine, ObservationsOfStepsAddUpToTheTokensComputed) {
  StepObservation sum;  // written by the loop thread, read after it has ended
  Engine::Options options = SmallOptions();
  options.on_step = [&](const StepObservation& step) {
    sum.prefill_tokens += step.prefill_tokens;
    sum.decode_tokens += step.decode_tokens;
  };
  Engine engine(options, std::make_unique<FakeExecutor>(FakeExecutor::Options{}));
  const auto first = Submit(engine, Spec(50, 10, 1)), second = Submit(engine, Spec(1, 3, 2));
  first->Wait();
  second->Wait();
  engine.Stop();
  EXPECT_EQ(sum.prefill_tokens, 51u);
  EXPECT_EQ(sum.decode_tokens, 9u + 2u);  // the last token of a prompt gives the first of the answer
}

// Counts what it and others were told.
class CountingSink : public CollectingSink {
 public:
  explicit CountingSink(uint64_t& told) : told_(told) {}
  void OnStarted(uint32_t) override { ++told_; }
  void OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) override {
    ++told_;
    CollectingSink::OnTokens(first_index, tokens);
  }
  void OnFinish(const SequenceResult& result) override {
    ++told_;
    CollectingSink::OnFinish(result);
  }

 private:
  uint64_t& told_;
};

TEST(Engine, WhatSinksAreToldIsFlushedBeforeTheNextStepIsComputedAndBeforeTheEnd) {
  uint64_t told = 0, flushed = 0, flushes = 0;  // the loop thread's, and read after it has ended
  Engine::Options options = SmallOptions();
  options.drain_seconds = 0;
  options.on_flush = [&] {
    flushed = told;
    ++flushes;
  };
  const auto run = [&](const std::vector<uint32_t>& tokens) {
    Engine engine(options, std::make_unique<FakeExecutor>(FakeExecutor::Options{
                               .before_step = [&](const StepPlan&) { EXPECT_EQ(told, flushed); }}));
    engine.Wake();
    std::vector<std::shared_ptr<CountingSink>> sinks;
    for (const uint32_t count : tokens) {
      sinks.push_back(std::make_shared<CountingSink>(told));
      ASSERT_TRUE(engine.Submit(Spec(20, count), sinks.back()).ok());
    }
    for (const auto& sink : sinks) sink->Wait();
    engine.Stop();
    EXPECT_EQ(told, flushed);
  };
  run({});
  EXPECT_EQ(flushes, 0u) << "never before the first sequence";
  run({1, 5, 30});
  EXPECT_GT(flushes, 0u);
  {
    Engine engine(options, std::make_unique<FakeExecutor>(FakeExecutor::Options{}));
    ASSERT_TRUE(engine.Submit(Spec(20, 200), std::make_shared<CountingSink>(told)).ok());
    engine.Drain([&] { EXPECT_EQ(told, flushed) << "and before a drain is over"; });
  }
  EXPECT_EQ(told, flushed);
}

TEST(Engine, AFullSinkPausesItsSequenceUntilItWakesTheEngine) {
  StepGate gate;
  Engine engine(SmallOptions(), GatedExecutor(gate));
  const auto slow = std::make_shared<SlowSink>();
  ASSERT_TRUE(engine.Submit(Spec(10, 40, 1), slow).ok());
  gate.AwaitStep(1);
  slow->is_stuck = true;
  gate.Open();
  EXPECT_EQ(Submit(engine, Spec(10, 40, 2))->Wait().ids(), WantedTokens(2, 40));
  EXPECT_EQ(engine.Stats().paused, 1u);
  slow->is_stuck = false;
  engine.Wake();
  EXPECT_EQ(slow->Wait().ids(), WantedTokens(1, 40));
}

TEST(Engine, APausedSequenceIsCancelledOrOverdueWithoutAStep) {
  for (const bool is_overdue : {false, true}) {
    FakeClock clock;
    Engine engine(SmallOptions(), std::make_unique<FakeExecutor>(FakeExecutor::Options{}), clock);
    const auto slow = std::make_shared<SlowSink>();
    slow->is_stuck = true;
    SequenceSpec spec = Spec(10, 40);
    spec.deadline = clock.Now() + std::chrono::seconds(1);
    ASSERT_TRUE(engine.Submit(spec, slow).ok());
    if (is_overdue) {
      clock.Advance(std::chrono::seconds(2));
    } else {
      slow->Cancel();
    }
    engine.Wake();
    EXPECT_EQ(slow->Wait().result.error.code(),
              is_overdue ? StatusCode::kDeadlineExceeded : StatusCode::kCancelled);
  }
}

TEST(Engine, PreemptionCostsAreLearntFromSteps) {
  StepGate gate;
  FakeClock clock;
  Engine::Options options = SmallOptions();
  options.scheduler.blocks = 16;
  options.scheduler.host_blocks = 64;
  options.scheduler.audits = true;
  // A step that takes this long a token makes swapping pay, however long a transfer takes.
  FakeExecutor::Options slow{
      .before_step = [&gate](const StepPlan&) { gate.Pass(); },
      .time = {.seconds_per_token = 1, .seconds_per_transfer = 0.001},
      .on_step_time =
          [&clock](double seconds) {
            clock.Advance(std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds)));
          }};
  Engine engine(std::move(options), std::make_unique<FakeExecutor>(std::move(slow)), clock);
  SequenceSpec first = Spec(60, 150, 1), second = Spec(60, 150, 2);
  second.prompt.assign(60, 2);
  const auto older = Submit(engine, first), newer = Submit(engine, second);
  gate.Open();  // not before both are there: together they need more blocks than there are
  EXPECT_EQ(older->Wait().ids(), WantedTokens(1, 150));
  EXPECT_EQ(newer->Wait().ids(), WantedTokens(2, 150));
  engine.Stop();
  EXPECT_EQ(engine.Stats().swap_preemptions, 1u);
  EXPECT_EQ(engine.Stats().recompute_preemptions, 0u);
}

TEST(Engine, ARefusedSequenceNeverReachesItsSink) {
  Engine engine(SmallOptions(), std::make_unique<FakeExecutor>(FakeExecutor::Options{}));
  const auto sink = std::make_shared<CollectingSink>();
  EXPECT_EQ(Reason(engine.Submit(Spec(256, 1), sink)), "context_length_exceeded");
  engine.Stop();
  EXPECT_EQ(sink.use_count(), 1);
  EXPECT_EQ(engine.Stats().cancelled, 0u);
}

}  // namespace
}  // namespace terrace
