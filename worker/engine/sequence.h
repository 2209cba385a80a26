// What a caller hands to the Engine, and what comes back. Values and one interface.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "worker/sample/sampler.h"
#include "worker/sample/sampling_params.h"

namespace terrace {

struct SequenceSpec {
  std::string request_id;       // for logs
  std::vector<int32_t> prompt;  // at least 1 token
  SamplingParams sampling;
  uint32_t max_tokens = 0;           // 0: as many as the context holds, or none when score_prompt
  std::vector<int32_t> stop_tokens;  // beside the model's end tokens
  bool ignore_eos = false;
  uint32_t top_logprobs = 0;  // 0 to 20
  bool score_prompt = false;
  int32_t priority = 0;    // [-100, 100], higher first
  std::string cache_salt;  // prefixes are shared only with sequences of the same one
  std::optional<MonoTime> deadline;
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };

struct SequenceStats {
  uint32_t prompt_tokens = 0, generated_tokens = 0;
  uint32_t cached_tokens = 0;  // of the prompt, found in the prefix cache when the sequence first ran
  uint32_t preemptions = 0;
  double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
};

struct SequenceResult {
  FinishReason reason = FinishReason::kStop;
  Status error;  // of kError, and of kCancelled: CANCELLED, DEADLINE_EXCEEDED, or UNAVAILABLE of a stopped
                 // engine
  SequenceStats stats;
};

// Where the answer of one sequence goes. The engine's loop thread calls it, and the calls must not
// block; any thread may cancel. Exactly one OnFinish, last. Shared by the engine and the caller.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  // Before all else, once: the sequence runs, and so much of its prompt was found in the prefix cache.
  virtual void OnStarted([[maybe_unused]] uint32_t cached_tokens) {}
  // Tokens [first_index, first_index + tokens.size()) of the answer: no gap, no repeat. The end token is sent
  // too.
  virtual void OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) = 0;
  // Scores of prompt tokens [first_index, ...), for score_prompt. The first token of a prompt has none.
  virtual void OnPromptScores(uint32_t first_index, std::span<const SampledToken> scores) = 0;
  virtual void OnFinish(const SequenceResult& result) = 0;
  // True when nobody reads any more: the engine drops the sequence before its next step.
  virtual bool is_closed() const = 0;
  // True while nothing more should come: the engine leaves the sequence out of its steps. Who makes room
  // again calls Engine::Wake.
  virtual bool is_full() const { return false; }
};

}  // namespace terrace
