// The serving core of one worker: owns the Scheduler, the Executor and the loop thread. Submit, Stats, Drain and Stop
// may be called from any thread; everything else happens on the loop thread, one step at a time:
// Scheduler::Schedule -> Executor::Run -> Scheduler::Commit.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "base/bounded_queue.h"
#include "base/clock.h"
#include "base/status.h"
#include "worker/engine/executor.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/sequence.h"

namespace terrace {

struct EngineStats {  // a consistent copy, made after each step
  uint32_t running = 0, waiting = 0;
  uint64_t waiting_prompt_tokens = 0;
  uint32_t free_blocks = 0, total_blocks = 0;
  uint64_t steps = 0, prompt_tokens = 0, generated_tokens = 0, finished = 0, failed = 0, cancelled = 0;
  MonoTime last_step;  // when the loop last made progress: liveness follows it
  bool is_idle = true;
};

// Called on the loop thread after each step, for metrics. Must not block.
struct StepObservation {
  double seconds = 0;
  uint32_t prefill_tokens = 0, decode_tokens = 0, sequences = 0;
};

class Engine {
 public:
  struct Options {
    SchedulerOptions scheduler;
    size_t inbox = 256;
    std::function<void(const StepObservation&)> on_step;
  };

  Engine(Options options, std::unique_ptr<Executor> executor, const Clock& clock = RealClock());
  ~Engine();  // Stop()

  // Hands the sequence over. INVALID_ARGUMENT (reason invalid_value, or context_length_exceeded with both numbers)
  // for one that can never run; RESOURCE_EXHAUSTED (overloaded) when the inbox is full; UNAVAILABLE (draining).
  // On error the sink is not called.
  Status Submit(SequenceSpec spec, std::shared_ptr<TokenSink> sink);

  EngineStats Stats() const;
  // Refuses new sequences from now on. `done` is called once, from the loop thread, when none is left.
  void Drain(std::function<void()> done);
  // Cancels what runs and joins the loop. Idempotent.
  void Stop();
};

}  // namespace terrace
