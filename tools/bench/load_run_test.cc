#include "tools/bench/load_run.h"

#include <set>

#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/bench/simulated_target.h"

namespace terrace {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::Pair;

constexpr uint32_t kPrompt = 20, kOutput = 8;

BenchSettings SettingsOf(LoadShape shape, uint64_t requests) {
  BenchSettings settings;
  settings.levels = {shape};
  settings.requests = requests;
  settings.workload.prompt_tokens = LengthDistribution::Fixed(kPrompt);
  settings.workload.output_tokens = LengthDistribution::Fixed(kOutput);
  return settings;
}

class LoadRunTest : public testing::Test {
 protected:
  LevelResult Run(const BenchSettings& settings, const LoadHooks& hooks = {}, LoadPart part = {}) {
    auto workload =
        Workload::Make(settings.workload, target_->vocabulary(), target_->description().context_length);
    EXPECT_TRUE(workload.ok()) << workload.status();
    return RunLoad(*target_, *workload, settings, part, time_, hooks);
  }
  void Answer(SimulatedTarget::Answers answers) {
    target_ = std::make_unique<SimulatedTarget>(time_, std::move(answers));
  }

  const std::shared_ptr<SimulatedTime> time_ = std::make_shared<SimulatedTime>();
  std::unique_ptr<SimulatedTarget> target_ = std::make_unique<SimulatedTarget>(time_);
};

TEST_F(LoadRunTest, AClosedLoopKeepsItsConcurrencyAndNeverExceedsIt) {
  Answer([](const BenchRequest& request) {
    return SimulatedAnswer{.first_token = milliseconds(1 + RandomBits(5, request.sampling_seed) % 50)};
  });
  const LevelResult result = Run(SettingsOf(ClosedLoop{.concurrency = 5}, 200));
  EXPECT_EQ(target_->most_in_flight, 5u);
  EXPECT_EQ(result.ok, 200u);
  EXPECT_EQ(result.output_tokens, 200u * kOutput);
  EXPECT_EQ(result.prompt_tokens, 200u * kPrompt);
  EXPECT_EQ(result.end_to_end.count(), 200u);
  EXPECT_EQ(result.inter_token.count(), 200u * (kOutput - 1));
  EXPECT_EQ(result.short_answers, 0u);
}

TEST_F(LoadRunTest, LatenciesAreThoseOfTheAnswers) {
  const LevelResult result = Run(SettingsOf(ClosedLoop{}, 10));
  EXPECT_DOUBLE_EQ(result.first_token.max(), 0.010);
  EXPECT_DOUBLE_EQ(result.inter_token.mean(), 0.002);
  EXPECT_DOUBLE_EQ(result.end_to_end.max(), 0.010 + 0.002 * (kOutput - 1));
  EXPECT_DOUBLE_EQ(result.queue.max(), 0.001);
  EXPECT_DOUBLE_EQ(result.seconds, 10 * result.end_to_end.max());
  EXPECT_DOUBLE_EQ(result.PerSecond(result.ok), 1 / result.end_to_end.max());
}

TEST_F(LoadRunTest, TokensThatArriveTogetherAreNoTimeApart) {
  Answer([](const BenchRequest&) { return SimulatedAnswer{.tokens_a_piece = 4}; });
  const LevelResult result = Run(SettingsOf(ClosedLoop{}, 10));
  EXPECT_EQ(result.inter_token.count(), 10u * (kOutput - 1));
  EXPECT_EQ(result.inter_token.Percentile(50), 0);  // 3 + 3 of 7 gaps
  EXPECT_DOUBLE_EQ(result.inter_token.max(), 0.002);
}

TEST_F(LoadRunTest, AnOpenLoopSendsOnTimeWhateverTheAnswersDo) {
  Answer([](const BenchRequest&) { return SimulatedAnswer{.first_token = seconds(30)}; });
  const MonoTime start = time_->Now();
  const LevelResult result = Run(SettingsOf(OpenLoop{.rate = 10, .arrivals = ArrivalKind::kConstant}, 100));
  EXPECT_EQ(result.ok, 100u);
  EXPECT_EQ(target_->most_in_flight, 100u);
  for (size_t i = 0; i < 100; ++i) EXPECT_EQ(target_->start_times[i], start + i * milliseconds(100));
}

TEST_F(LoadRunTest, AnOpenLoopDropsAndCountsWhatExceedsItsLimit) {
  Answer([](const BenchRequest&) { return SimulatedAnswer{.first_token = seconds(5)}; });
  const LevelResult result =
      Run(SettingsOf(OpenLoop{.rate = 10, .arrivals = ArrivalKind::kConstant, .max_in_flight = 7}, 30));
  EXPECT_EQ(target_->most_in_flight, 7u);
  EXPECT_EQ(target_->started.size(), 7u);
  EXPECT_EQ(result.planned, 30u);
  EXPECT_EQ(result.dropped, 23u);
  EXPECT_EQ(result.ok, 7u);
  EXPECT_EQ(result.send_lag.max(), 0);
}

TEST_F(LoadRunTest, LatencyCountsFromWhenARequestWasMeantToBeSent) {
  bool has_stalled = false;
  LoadHooks hooks;
  hooks.on_progress = [&](const LoadProgress& progress) {
    if (progress.seconds > 0.45 && !std::exchange(has_stalled, true))
      time_->Stall(seconds(2));  // the client sleeps
  };
  const LevelResult result =
      Run(SettingsOf(OpenLoop{.rate = 10, .arrivals = ArrivalKind::kConstant}, 20), hooks);
  EXPECT_EQ(result.ok, 20u);
  EXPECT_NEAR(result.send_lag.max(), 2, 0.11);
  EXPECT_NEAR(result.first_token.max(), 2 + 0.010, 0.11);
  EXPECT_GT(result.end_to_end.Percentile(90), 1.5);
}

TEST_F(LoadRunTest, AnEarlyStopIsFlagged) {
  Answer([](const BenchRequest& request) {
    SimulatedAnswer answer;
    if (request.id == "bench-0-3") answer.tokens = kOutput - 1;
    if (request.id == "bench-0-4") answer.tokens = 0;
    return answer;
  });
  const LevelResult result = Run(SettingsOf(ClosedLoop{2}, 10));
  EXPECT_EQ(result.ok, 10u);
  EXPECT_EQ(result.short_answers, 2u);
  EXPECT_EQ(result.min_output_tokens, 0u);
  EXPECT_EQ(result.max_output_tokens, kOutput);
  std::set<uint64_t> short_ones;
  for (const ShortAnswer& answer : result.short_answer_examples) {
    EXPECT_EQ(answer.wanted_tokens, kOutput);
    short_ones.insert(answer.request);
  }
  EXPECT_THAT(short_ones, ElementsAre(3, 4));
}

TEST_F(LoadRunTest, FailuresAreCountedByReasonWithAnExampleEach) {
  Answer([](const BenchRequest& request) {
    SimulatedAnswer answer;
    if (request.id.ends_with("1"))
      answer.status = WithReason(ResourceExhausted("full: ", request.id), "overloaded");
    if (request.id.ends_with("2")) answer = {.status = DeadlineExceeded("late"), .tokens = 3};
    return answer;
  });
  const LevelResult result = Run(SettingsOf(ClosedLoop{1}, 30));
  EXPECT_EQ(result.ok, 24u);
  EXPECT_EQ(result.failed, 6u);
  ASSERT_EQ(result.failures.size(), 2u);
  EXPECT_EQ(result.failures.at("overloaded").count, 3u);
  EXPECT_EQ(result.failures.at("overloaded").example, "full: bench-0-1");
  EXPECT_EQ(result.failures.at("deadline_exceeded").count, 3u);
  EXPECT_EQ(result.end_to_end.count(), 24u);
  EXPECT_EQ(result.output_tokens, (24u + 3) * kOutput + 3 * 3);  // what arrived, arrived
}

TEST_F(LoadRunTest, APlaceWhoseRequestFailedRests) {
  Answer([](const BenchRequest&) {
    return SimulatedAnswer{.first_token = {}, .status = Unavailable("gone"), .tokens = 0};
  });
  const LevelResult result = Run(SettingsOf(ClosedLoop{4}, 20));
  EXPECT_EQ(result.failed, 20u);
  EXPECT_NEAR(result.seconds, 4 * Seconds(kRestAfterFailure), 0.01);
}

TEST_F(LoadRunTest, CancelledRequestsEndAtTheirTokenAndAreNotFailures) {
  BenchSettings settings = SettingsOf(ClosedLoop{3}, 40);
  settings.workload.cancel_fraction = 1;
  const LevelResult result = Run(settings);
  EXPECT_EQ(result.cancelled, 40u);
  EXPECT_EQ(result.failed, 0u);
  uint64_t tokens = 0;
  const auto workload = Workload::Make(settings.workload, target_->vocabulary(), 0);
  for (uint64_t i = 0; i < 40; ++i) tokens += *workload->Plan({.index = i}).cancel_after;
  EXPECT_EQ(result.output_tokens, tokens);
}

TEST_F(LoadRunTest, ADurationEndsTheSendingAndWhatIsUnderWayMayEnd) {
  const MonoTime start = time_->Now();
  for (const LoadShape& shape : {LoadShape(ClosedLoop{2}), LoadShape(OpenLoop{.rate = 20})}) {
    BenchSettings settings = SettingsOf(shape, 1);
    settings.requests.reset();
    settings.duration_seconds = 3;
    const LevelResult result = Run(settings);
    EXPECT_EQ(result.ok, result.planned);
    EXPECT_GT(result.ok, 30u);
    EXPECT_NEAR(result.seconds, 3, 0.5);
  }
  EXPECT_LT(target_->start_times.back(), start + seconds(7));
}

TEST_F(LoadRunTest, AnInterruptionCancelsWhatIsUnderWayAndKeepsWhatWasMeasured) {
  LoadHooks hooks;
  hooks.is_interrupted = [&] { return target_->started.size() >= 25; };
  const LevelResult result = Run(SettingsOf(ClosedLoop{4}, 1000), hooks);
  EXPECT_TRUE(result.is_interrupted);
  EXPECT_EQ(target_->in_flight, 0u);
  EXPECT_GT(result.cancelled, 0u);
  EXPECT_EQ(result.planned, target_->started.size());
  EXPECT_EQ(result.ok + result.cancelled, result.planned);
  EXPECT_EQ(result.failed, 0u);
}

TEST_F(LoadRunTest, AnAnswerThatWasWholeBeforeItsCancellationCameIsOkOnlyIfAllOfItCounted) {
  RequestRecord planned;
  planned.wanted_tokens = 2;
  for (const bool is_all_here : {true, false}) {
    const auto box = std::make_shared<RecordBox>(time_);
    RequestRecorder recorder(planned, std::nullopt, box);
    EXPECT_TRUE(recorder.OnTokens(is_all_here ? 2 : 1));
    recorder.SetCancelled();
    EXPECT_TRUE(is_all_here || !recorder.OnTokens(1));
    recorder.OnEnd({});
    const std::vector<RequestRecord> records = box->TakeAll();
    ASSERT_EQ(records.size(), 1u);
    EXPECT_EQ(records[0].outcome, is_all_here ? Outcome::kOk : Outcome::kCancelled);
  }
}

TEST_F(LoadRunTest, RequestsCarryWhatTheSettingsSay) {
  BenchSettings settings = SettingsOf(OpenLoop{.rate = 5, .arrivals = ArrivalKind::kConstant}, 3);
  settings.temperature = 0.5;
  settings.priority = -7;
  settings.deadline_seconds = 1.5;
  const MonoTime start = time_->Now();
  Run(settings);
  ASSERT_EQ(target_->started.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    const BenchRequest& request = target_->started[i];
    EXPECT_EQ(request.prompt.size(), kPrompt);
    EXPECT_EQ(request.output_tokens, kOutput);
    EXPECT_EQ(request.temperature, 0.5f);
    EXPECT_EQ(request.priority, -7);
    EXPECT_EQ(request.deadline, start + i * milliseconds(200) + milliseconds(1500));
  }
}

TEST_F(LoadRunTest, AWarmUpHasItsOwnRequestsAndNumber) {
  BenchSettings settings = SettingsOf(ClosedLoop{2}, 5);
  settings.warmup_requests = 3;
  const LevelResult warmup = Run(settings, {}, {.level = 0, .is_warmup = true});
  EXPECT_EQ(warmup.ok, 3u);
  const LevelResult measured = Run(settings);
  EXPECT_EQ(measured.ok, 5u);
  std::set<std::vector<TokenId>> prompts;
  for (const BenchRequest& request : target_->started) prompts.insert(request.prompt);
  EXPECT_EQ(prompts.size(), 8u);
}

}  // namespace
}  // namespace terrace
