#include "worker/engine/engine.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/failpoint.h"

namespace terrace {
namespace {

// How often a loop whose sequences are all paused looks for closed sinks and deadlines by itself.
constexpr auto kStalledPoll = std::chrono::milliseconds(20);
// The weight of a new measurement of a cost.
constexpr double kCostWeight = 0.1;
// Prompt tokens a step needs to tell what one costs.
constexpr uint32_t kTellingTokens = 16;

Duration ToDuration(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

// For tests that make a worker fail at a certain one.
[[maybe_unused]] std::vector<int32_t> TokensOf(const StepPlan& plan) {
  std::vector<int32_t> tokens;
  for (const PlannedSequence& part : plan.sequences)
    tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
  return tokens;
}

Status Draining() { return WithReason(Unavailable("the worker is draining; no new sequences"), "draining"); }

Status HandedOver() {
  return WithReason(Unavailable("the worker is draining; another one can go on with the answer"), "draining");
}

Status DeviceLost() {
  return WithReason(Unavailable("the worker has lost its device, or a rank of its group; another one can go "
                                "on with the answer"),
                    "device_lost");
}

double CountTokens(const StepPlan& plan) {
  size_t tokens = 0;
  for (const PlannedSequence& part : plan.sequences) tokens += part.tokens.size();
  return static_cast<double>(tokens);
}

StepObservation Observe(const StepPlan& plan, Duration took) {
  StepObservation observation{.seconds = Seconds(took)};
  for (const PlannedSequence& part : plan.sequences) {
    const auto known = static_cast<uint32_t>(part.tokens.size()) - part.proposed;
    if (part.is_branch) {  // all of it for a guess
      observation.draft_tokens += known + part.proposed;
      continue;
    }
    ++observation.sequences;
    (part.is_decode ? observation.decode_tokens : observation.prefill_tokens) += known;
    observation.draft_tokens += part.proposed;
  }
  return observation;
}

SchedulerOptions WithPrefixChanges(SchedulerOptions options) {
  options.records_prefix_changes = true;
  return options;
}

}  // namespace

Engine::Engine(Options options, std::unique_ptr<Executor> executor, const Clock& clock,
               std::unique_ptr<Drafter> drafter)
    : options_(std::move(options)),
      clock_(clock),
      executor_(std::move(executor)),
      scheduler_(WithPrefixChanges(options_.scheduler)),
      speculation_({.max_tokens = options_.max_speculated_tokens,
                    .max_branch_tokens = options_.max_branch_tokens,
                    .adapts = options_.adapts_speculation},
                   std::move(drafter), options_.on_drafter_failed, clock_),
      inbox_(options_.inbox) {
  Publish(clock_.Now());
  loop_ = std::jthread([this](std::stop_token stop) { Loop(std::move(stop)); });
}

Engine::~Engine() { Stop(); }

Status Engine::Submit(SequenceSpec spec, std::shared_ptr<TokenSink> sink) {
  RETURN_IF_ERROR(Scheduler::Validate(spec, options_.scheduler));
  Submission submission{std::move(spec), std::move(sink), clock_.Now()};
  std::lock_guard lock(mutex_);
  if (is_draining_) return Draining();
  if (waiting_ >= options_.inbox) {
    return WithReason(ResourceExhausted(waiting_, " sequences are waiting, limit ", options_.inbox),
                      "overloaded");
  }
  CHECK(inbox_.TryPush(std::move(submission)));  // as large as the limit, and closed by nobody
  ++waiting_;
  return {};
}

EngineStats Engine::Stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

Status Engine::device_error() const {
  std::lock_guard lock(mutex_);
  return device_error_;
}

void Engine::Drain(std::function<void()> done) {
  {
    std::lock_guard lock(mutex_);
    is_draining_ = true;
    if (!hand_over_at_.has_value()) hand_over_at_ = clock_.Now() + ToDuration(options_.drain_seconds);
    if (!has_stopped_) drains_.push_back(std::exchange(done, nullptr));
  }
  if (done) return done();
  inbox_.Wake();
}

void Engine::Stop() {
  RequestStop();
  Join();
}

bool Engine::StopWithin(Duration limit) {
  RequestStop();
  {
    std::unique_lock lock(mutex_);
    if (!stopped_.wait_for(lock, limit, [this] { return has_stopped_; })) return false;
  }
  Join();
  return true;
}

void Engine::RequestStop() {
  {
    std::lock_guard lock(mutex_);
    is_draining_ = true;
  }
  loop_.request_stop();
}

void Engine::Join() {
  std::call_once(join_once_, [this] { loop_.join(); });
}

void Engine::Loop(std::stop_token stop) {
  while (!stop.stop_requested()) {
    TakeInbox(stop);
    const bool has_work = !scheduler_.idle();
    HandOverIfDue();
    Step();
    if (has_work && scheduler_.idle()) Flush();
    FinishDrains();
  }
  TakeInbox(stop);  // Stop lets nothing in after it asked.
  const bool has_work = !scheduler_.idle();
  scheduler_.CancelAll(device_error().ok() ? HandedOver() : DeviceLost(), clock_.Now());
  if (has_work) Flush();
  Publish(clock_.Now());
  {
    std::lock_guard lock(mutex_);
    has_stopped_ = true;
  }
  stopped_.notify_all();
  FinishDrains();
}

// Sleeps only when nothing can be done: while something waits or runs, closed sinks and deadlines are noticed
// by the next step.
void Engine::TakeInbox(std::stop_token stop) {
  bool has_drains;
  {
    std::lock_guard lock(mutex_);
    has_drains = !drains_.empty();
  }
  std::optional<Duration> wait = Duration(0);
  if (is_stalled_) wait = kStalledPoll;
  if (scheduler_.idle() && !has_drains) wait = executor_->idle_period();
  for (Submission& taken : inbox_.Drain(std::move(stop), wait)) {
    scheduler_.Add(std::move(taken.spec), std::move(taken.sink), taken.arrived);
  }
}

// Every time round: what was in the inbox before comes later.
void Engine::HandOverIfDue() {
  const MonoTime now = clock_.Now();
  bool is_device_lost;
  {
    std::lock_guard lock(mutex_);
    is_device_lost = !device_error_.ok();
    if (!is_device_lost && (!hand_over_at_.has_value() || now < *hand_over_at_)) return;
  }
  scheduler_.CancelAll(is_device_lost ? DeviceLost() : HandedOver(), now);
}

void Engine::Flush() {
  if (options_.on_flush) options_.on_flush();
}

void Engine::Step() {
  const MonoTime begin = clock_.Now();
  StepPlan plan = scheduler_.Schedule(begin);
  usual_step_ = ToDuration(seconds_per_token_.value_or(0) * CountTokens(plan));
  Publish(begin);
  if (!scheduler_.idle()) Flush();
  is_stalled_ = plan.empty();
  speculation_.Draft(scheduler_, plan);
  if (plan.empty()) return KeepDevice();
  TERRACE_FAILPOINT("worker.computes_token", TokensOf(plan));
  const MonoTime run = clock_.Now();
  StepResult result = executor_->Run(plan);
  if (!result.device_error.ok()) return LoseDevice(result.device_error);
  const MonoTime end = clock_.Now();
  StepObservation observation = Observe(plan, end - begin);
  if (const double tokens = CountTokens(plan); tokens > 0) {
    const double rate = observation.seconds / tokens;
    seconds_per_token_ = std::min(seconds_per_token_.value_or(rate), rate);
  }
  const double compute_seconds = Seconds(end - run) - result.transfer_seconds;
  const bool tells_costs = !result.is_first_of_its_kind;
  if (tells_costs) LearnCosts(plan, observation, compute_seconds, result.transfer_seconds);
  scheduler_.Commit(plan, std::move(result), end);
  speculation_.Learn(scheduler_, tells_costs ? std::optional(compute_seconds) : std::nullopt);
  TERRACE_FAILPOINT("worker.after_step");
  ++steps_;
  Publish(end);
  observation.latencies = scheduler_.TakeLatencies();
  if (options_.on_step) options_.on_step(observation);
}

void Engine::KeepDevice() {
  if (!device_error().ok()) return;
  if (const Status kept = executor_->Idle(); !kept.ok()) LoseDevice(kept);
}

// What the step computed is nowhere; what was sent before it holds.
void Engine::LoseDevice(const Status& error) {
  {
    std::lock_guard lock(mutex_);
    device_error_ = error;
    is_draining_ = true;
  }
  if (options_.on_device_lost) options_.on_device_lost(error);
  scheduler_.CancelAll(DeviceLost(), clock_.Now());
  Publish(clock_.Now());
}

void Engine::LearnCosts(const StepPlan& plan, const StepObservation& observation, double compute_seconds,
                        double transfer_seconds) {
  const auto learn = [](double& cost, double measured) { cost += kCostWeight * (measured - cost); };
  if (observation.prefill_tokens >= kTellingTokens) {
    const uint32_t computed =
        observation.prefill_tokens + observation.decode_tokens + observation.draft_tokens;
    learn(costs_.recompute_seconds_per_token, compute_seconds / computed);
  }
  const auto moved = std::ranges::count_if(plan.transfers, [](const BlockTransfer& transfer) {
    return transfer.kind != BlockTransfer::Kind::kCopyRows;
  });
  if (moved > 0) learn(costs_.swap_seconds_per_block, transfer_seconds / static_cast<double>(moved));
  scheduler_.SetCosts(costs_);
}

void Engine::Publish(MonoTime now) {
  prefixes_.Append(scheduler_.TakePrefixChanges());
  EngineStats stats{scheduler_.Stats()};
  stats.steps = steps_;
  stats.last_step = now;
  stats.usual_step = usual_step_;
  stats.is_idle = scheduler_.idle();
  stats.speculation = speculation_.stats();
  std::lock_guard lock(mutex_);
  stats.is_device_lost = !device_error_.ok();
  waiting_ = inbox_.size() + stats.waiting;
  stats_ = stats;
}

void Engine::FinishDrains() {
  std::vector<std::function<void()>> done;
  {
    std::lock_guard lock(mutex_);
    // Once a drain is asked for, the inbox only empties.
    if (drains_.empty() || !scheduler_.idle() || inbox_.size() > 0) return;
    done = std::exchange(drains_, {});
  }
  for (auto& callback : done) callback();
}

}  // namespace terrace
