// A target and a clock for tests that are one simulation: an answer's tokens come when the simulated time
// says, and waiting is how that time passes. One thread.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "tools/bench/bench_target.h"
#include "tools/bench/bench_time.h"

namespace terrace {

class SimulatedTime : public BenchTime {
 public:
  MonoTime Now() const override { return now_; }
  // Runs what is due until `deadline`, stopping as soon as something wakes the waiter.
  void WaitUntil(MonoTime deadline) override {
    while (!is_woken_ && !events_.empty() && events_.begin()->first <= deadline) {
      const auto event = events_.begin();
      now_ = std::max(now_, event->first);
      const std::function<void()> run = std::move(event->second);
      events_.erase(event);
      run();
    }
    if (!is_woken_) now_ = std::max(now_, deadline);
    is_woken_ = false;
  }
  void Wake() override { is_woken_ = true; }

  void At(MonoTime when, std::function<void()> run) { events_.emplace(when, std::move(run)); }
  void Stall(Duration by) { now_ += by; }  // the client's thread was away

 private:
  MonoTime now_ = MonoTime(std::chrono::hours(1));
  std::multimap<MonoTime, std::function<void()>> events_;
  bool is_woken_ = false;
};

struct SimulatedAnswer {
  Duration first_token = std::chrono::milliseconds(10);
  Duration inter_token = std::chrono::milliseconds(2);
  uint32_t tokens_a_piece = 1;
  Status status = {};                   // at the end, after `tokens` tokens
  std::optional<uint32_t> tokens = {};  // default: what the request asks for
  uint32_t cached_tokens = 0;
  uint32_t speculated = 0, accepted_speculated = 0;  // of its tokens
};

class SimulatedTarget : public BenchTarget {
 public:
  using Answers = std::function<SimulatedAnswer(const BenchRequest&)>;

  explicit SimulatedTarget(
      std::shared_ptr<SimulatedTime> time,
      Answers answers = [](const BenchRequest&) { return SimulatedAnswer(); })
      : time_(std::move(time)), answers_(std::move(answers)) {
    description_ = {.kind = "model", .name = "simulated", .model = "simulated", .context_length = 4096};
    for (TokenId id = 3; id < 1000; ++id) vocabulary_.push_back(id);
  }

  const TargetDescription& description() const override { return description_; }
  const std::vector<TokenId>& vocabulary() const override { return vocabulary_; }
  std::optional<SpeculationStats> Speculation() const override { return drafted; }

  std::unique_ptr<BenchCall> Start(const BenchRequest& request,
                                   std::shared_ptr<BenchObserver> observer) override {
    auto run = std::make_shared<Run>(Run{*this, std::move(observer), answers_(request), request.output_tokens,
                                         static_cast<uint32_t>(request.prompt.size())});
    started.push_back(request);
    start_times.push_back(time_->Now());
    most_in_flight = std::max(most_in_flight, ++in_flight);
    const uint32_t tokens = run->answer.tokens.value_or(run->wanted);
    run->left = tokens;
    time_->At(time_->Now() + run->answer.first_token, [run] { run->Step(run); });
    return std::make_unique<Call>(run);
  }

  // What the run did.
  std::vector<BenchRequest> started;
  std::vector<MonoTime> start_times;
  uint32_t in_flight = 0, most_in_flight = 0;
  // Of its engine, when it is said to have a drafter; each answer has all its drafted tokens in one pass.
  std::optional<SpeculationStats> drafted;

 private:
  struct Run {
    SimulatedTarget& target;
    std::shared_ptr<BenchObserver> observer;  // null when the end was reported
    SimulatedAnswer answer;
    uint32_t wanted = 0, prompt_tokens = 0, left = 0;

    void Step(const std::shared_ptr<Run>& self) {
      if (observer == nullptr) return;
      const uint32_t count = std::min(left, answer.tokens_a_piece);
      left -= count;
      if (count > 0 && !observer->OnTokens(count)) return End(Cancelled("cancelled"));
      if (left == 0) return End(answer.status);
      target.time_->At(target.time_->Now() + answer.inter_token, [self] { self->Step(self); });
    }
    void End(const Status& status) {
      if (observer == nullptr) return;
      --target.in_flight;
      BenchEnd end;
      end.status = status;
      if (status.ok()) {
        end.prompt_tokens = prompt_tokens;
        end.cached_tokens = answer.cached_tokens;
        end.queue_seconds = 0.001;
        end.speculated_tokens = answer.speculated;
        end.accepted_speculated_tokens = answer.accepted_speculated;
        if (target.drafted.has_value()) {
          target.drafted->verified[0] += answer.speculated;
          target.drafted->accepted[0] += answer.accepted_speculated;
          ++target.drafted->passes;
        }
      }
      std::exchange(observer, nullptr)->OnEnd(end);
    }
  };

  class Call : public BenchCall {
   public:
    explicit Call(std::shared_ptr<Run> run) : run_(std::move(run)) {}
    void Cancel() override { run_->End(Cancelled("cancelled")); }

   private:
    const std::shared_ptr<Run> run_;
  };

  const std::shared_ptr<SimulatedTime> time_;
  const Answers answers_;
  TargetDescription description_;
  std::vector<TokenId> vocabulary_;
};

}  // namespace terrace
