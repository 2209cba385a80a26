// The serving core of one worker: owns the Scheduler, the Executor, the Drafter and the loop thread. Submit,
// Stats, Wake, Drain, Stop and StopWithin may be called from any thread; everything else happens on the loop
// thread, one step at a time: Scheduler::Schedule -> Speculation::Draft -> Executor::Run ->
// Scheduler::Commit.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/bounded_queue.h"
#include "base/clock.h"
#include "base/status.h"
#include "worker/engine/executor.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/sequence.h"
#include "worker/engine/speculation.h"
#include "worker/kv/prefix_journal.h"
#include "worker/speculative/drafter.h"

namespace terrace {

// A consistent copy, made when a step begins and when it ends.
struct EngineStats : SchedulerStats {
  uint64_t steps = 0;
  MonoTime last_step = {};   // when the loop last made progress: liveness follows it
  Duration usual_step = {};  // what the step that began last takes at the fastest rate so far; 0: not known
  bool is_idle = true;
  bool is_device_lost = false;
  SpeculationStats speculation = {};
};

// Called on the loop thread after each step, for metrics. Must not block.
struct StepObservation {
  double seconds = 0;  // with drafting
  uint32_t prefill_tokens = 0, decode_tokens = 0, sequences = 0;
  uint32_t draft_tokens = 0;      // of whichever draft: computed too, accepted or not
  LatencySamples latencies = {};  // of sequences, since the last step
};

class Engine {
 public:
  struct Options {
    SchedulerOptions scheduler;
    size_t inbox = 256;        // sequences waiting for a place in the batch; more are refused
    double drain_seconds = 1;  // for which sequences may go on once the engine drains
    std::function<void(const StepObservation&)> on_step = nullptr;
    // Called on the loop thread when sinks have been told all there is for now: once a step, before it is
    // computed, with what the step before has made and who begins; and when no sequence is left. Never before
    // the first sequence. Must not block.
    std::function<void()> on_flush = nullptr;
    // Called once, on the loop thread, before the sequences end that the device was lost with. Must not
    // block.
    std::function<void(const Status&)> on_device_lost = nullptr;
    uint32_t max_speculated_tokens = 8;  // that the drafter may propose for a sequence and step
    uint32_t max_branch_tokens = 0;      // of a second guess beside that; 0: there are none
    bool adapts_speculation = true;      // see DraftController
    // Called once, on the loop thread, when the drafter failed: the engine goes on without. Must not block.
    std::function<void(const Status&)> on_drafter_failed = nullptr;
  };

  // Without a drafter nothing is drafted but what comes with the sequences.
  Engine(Options options, std::unique_ptr<Executor> executor, const Clock& clock = RealClock(),
         std::unique_ptr<Drafter> drafter = nullptr);
  ~Engine();  // Stop()

  // Hands the sequence over. INVALID_ARGUMENT (reason invalid_value, or context_length_exceeded with both
  // numbers) for one that can never run; RESOURCE_EXHAUSTED (overloaded) when the inbox is full; UNAVAILABLE
  // (draining). On error the sink is not called.
  Status Submit(SequenceSpec spec, std::shared_ptr<TokenSink> sink);

  EngineStats Stats() const;
  // Not OK once a step was lost with the device. Then the engine drains, and every sequence has ended, or is
  // about to, with UNAVAILABLE, reason device_lost: all tokens of the steps before are sent, and its caller
  // may resume it elsewhere.
  Status device_error() const;
  // A full sink has room again, or one was closed: the loop looks at once if it sleeps.
  void Wake() { inbox_.Wake(); }
  // Refuses new sequences from now on. Those it has may end by themselves for drain_seconds, from the first
  // call on; what is left then is handed over: it ends between two steps (kCancelled, with UNAVAILABLE,
  // reason draining), all its tokens sent, for its caller to resume elsewhere. `done` is called once, when no
  // sequence is left: from the loop thread, or from this call when the engine has stopped.
  void Drain(std::function<void()> done);
  // Hands over at once, after the step in progress, and joins the loop. Idempotent. Not from a sink.
  void Stop();
  // The same, but false when that step has not ended within `limit`: the loop stops when it does.
  bool StopWithin(Duration limit);

  // What the prefix cache holds.
  const PrefixJournal& prefixes() const { return prefixes_; }

  const SchedulerOptions& scheduler_options() const { return scheduler_.options(); }

 private:
  struct Submission {
    SequenceSpec spec;
    std::shared_ptr<TokenSink> sink;
    MonoTime arrived;
  };

  void RequestStop();
  void Join();
  void Loop(std::stop_token stop);
  void TakeInbox(std::stop_token stop);
  void HandOverIfDue();
  void Flush();
  void Step();
  void KeepDevice();
  void LoseDevice(const Status& error);
  void LearnCosts(const StepPlan& plan, const StepObservation& observation, double compute_seconds,
                  double transfer_seconds);
  void Publish(MonoTime now);
  void FinishDrains();

  const Options options_;
  const Clock& clock_;  // outlives the engine
  const std::unique_ptr<Executor> executor_;
  Scheduler scheduler_;                      // the loop thread's, but for its options
  Speculation speculation_;                  // the loop thread's
  uint64_t steps_ = 0;                       // the loop thread's
  bool is_stalled_ = false;                  // the loop thread's: all that is left is paused
  std::optional<double> seconds_per_token_;  // the loop thread's: of the fastest step so far
  Duration usual_step_ = {};                 // the loop thread's
  PreemptionCosts costs_;                    // the loop thread's
  PrefixJournal prefixes_;

  BoundedQueue<Submission> inbox_;
  mutable std::mutex mutex_;
  size_t waiting_ = 0;                         // GUARDED_BY(mutex_): in the inbox or waiting in the scheduler
  bool is_draining_ = false;                   // GUARDED_BY(mutex_): nothing enters the inbox any more
  std::optional<MonoTime> hand_over_at_;       // GUARDED_BY(mutex_)
  bool has_stopped_ = false;                   // GUARDED_BY(mutex_): the loop has ended
  std::condition_variable stopped_;            // has_stopped_
  Status device_error_;                        // GUARDED_BY(mutex_)
  std::vector<std::function<void()>> drains_;  // GUARDED_BY(mutex_)
  EngineStats stats_;                          // GUARDED_BY(mutex_)
  std::once_flag join_once_;
  std::jthread loop_;  // last: joins before what it uses dies
};

}  // namespace terrace
