// Takes the time of one round: sequences that an engine begins together. Made before the engine, which it
// outlives. Run, or Begin, MakeSink, Open and Await in this order, are called by one thread; the rest by the
// engine's.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "text/tokenizer.h"
#include "worker/engine/engine.h"
#include "worker/engine/sequence.h"

namespace terrace {

struct RoundTimes {
  double prefill_seconds = 0;  // from Open to the end of the step that gave the last of the first tokens
  // Of the steps from then on, up to the one in which the first sequence ends: all are in each of them.
  double decode_seconds = 0;
  uint64_t decode_tokens = 0;
};

class RoundMeter {
 public:
  explicit RoundMeter(const Clock& clock = RealClock()) : clock_(clock) {}

  void Begin(uint32_t sequences);         // the round before is over
  std::shared_ptr<TokenSink> MakeSink();  // full until Open: the engine lets none of them in before
  void Open();                            // all are handed over; Engine::Wake follows
  void OnStep();  // after each step of the engine, and all that it sent (OpenEngineOptions::on_step)

  // Until all sequences have ended. The error of one that failed; CANCELLED when `is_cancelled`, asked about
  // every 50 ms, says so: the sequences may then go on.
  StatusOr<RoundTimes> Await(const std::function<bool()>& is_cancelled);

  // All of that: greedy answers of `answer_tokens` tokens, which the model's end tokens do not end. Errors of
  // Await and of Engine::Submit.
  StatusOr<RoundTimes> Run(Engine& engine, std::vector<std::vector<TokenId>> prompts, uint32_t answer_tokens,
                           const std::function<bool()>& is_cancelled);

 private:
  class Sink;

  void OnTokens(bool is_first, size_t count);
  void OnFinish(const SequenceResult& result);

  const Clock& clock_;
  std::atomic<bool> is_open_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  // GUARDED_BY(mutex_):
  uint32_t sequences_ = 0, started_ = 0, ended_ = 0;
  uint64_t step_tokens_ = 0;  // since the last step
  MonoTime opened_, last_step_;
  bool has_started_ = false;  // a step has ended behind which all sequences have their first token
  bool is_whole_ = false;     // the same, and none has ended before
  bool is_over_ = false;
  RoundTimes times_;
  Status error_;
};

}  // namespace terrace
