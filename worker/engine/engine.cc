#include "worker/engine/engine.h"

#include <utility>

namespace terrace {
namespace {

Status Draining() { return WithReason(Unavailable("the worker is draining; no new sequences"), "draining"); }

StepObservation Observe(const StepPlan& plan, Duration took) {
  StepObservation observation{.seconds = Seconds(took),
                              .sequences = static_cast<uint32_t>(plan.sequences.size())};
  for (const PlannedSequence& part : plan.sequences) {
    (part.sample_index > 0 ? observation.decode_tokens : observation.prefill_tokens) += part.tokens.size();
  }
  return observation;
}

}  // namespace

Engine::Engine(Options options, std::unique_ptr<Executor> executor, const Clock& clock)
    : options_(std::move(options)),
      clock_(clock),
      executor_(std::move(executor)),
      scheduler_(options_.scheduler),
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

void Engine::Drain(std::function<void()> done) {
  {
    std::lock_guard lock(mutex_);
    is_draining_ = true;
    if (!has_stopped_) drains_.push_back(std::exchange(done, nullptr));
  }
  if (done) return done();
  inbox_.Wake();
}

void Engine::Stop() {
  {
    std::lock_guard lock(mutex_);
    is_draining_ = true;
  }
  std::call_once(stop_once_, [this] {
    loop_.request_stop();
    loop_.join();
  });
}

void Engine::Loop(std::stop_token stop) {
  while (!stop.stop_requested()) {
    TakeInbox(stop);
    Step();
    FinishDrains();
  }
  TakeInbox(stop);  // Stop lets nothing in after it asked.
  scheduler_.CancelAll(WithReason(Unavailable("the worker is stopping"), "draining"), clock_.Now());
  Publish(clock_.Now());
  {
    std::lock_guard lock(mutex_);
    has_stopped_ = true;
  }
  FinishDrains();
}

// Sleeps only when nothing is left to do: a waiting sequence that nobody reads, or that is overdue, is
// noticed by the next step, however many there are.
void Engine::TakeInbox(std::stop_token stop) {
  bool has_drains;
  {
    std::lock_guard lock(mutex_);
    has_drains = !drains_.empty();
  }
  for (Submission& taken : inbox_.Drain(stop, /*wait=*/scheduler_.idle() && !has_drains)) {
    scheduler_.Add(std::move(taken.spec), std::move(taken.sink), taken.arrived);
  }
}

void Engine::Step() {
  const MonoTime begin = clock_.Now();
  const StepPlan plan = scheduler_.Schedule(begin);
  Publish(begin);
  if (plan.empty()) return;
  StepResult result = executor_->Run(plan);
  const MonoTime end = clock_.Now();
  const StepObservation observation = Observe(plan, end - begin);
  scheduler_.Commit(plan, std::move(result), end);
  ++steps_;
  Publish(end);
  if (options_.on_step) options_.on_step(observation);
}

void Engine::Publish(MonoTime now) {
  EngineStats stats{scheduler_.Stats()};
  stats.steps = steps_;
  stats.last_step = now;
  stats.is_idle = scheduler_.idle();
  std::lock_guard lock(mutex_);
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
