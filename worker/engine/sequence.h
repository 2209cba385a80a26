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
#include "worker/speculative/acceptance.h"

namespace terrace {

struct SequenceSpec {
  std::string request_id;       // for logs
  std::vector<int32_t> prompt;  // at least 1 token
  // Tokens that the answer has already, from an earlier run of the same spec, perhaps elsewhere: the sequence
  // goes on as if it had chosen them itself, and sends what follows. They count for max_tokens and penalties.
  std::vector<int32_t> resume;
  // What the answer behind `resume` may be. It is verified, many tokens a step, up to the first one that
  // would not have been chosen: it decides when tokens come, never which. What is too long is cut.
  std::vector<int32_t> draft;
  // Tokens that the engine's drafter may propose in a step, at most; 0: none. Absent: as the engine has it.
  std::optional<uint32_t> speculation = std::nullopt;
  // How often drafts of `resume` were right, as the sink of an earlier run was told; absent: nothing is
  // known.
  std::optional<DraftRecord> draft_record = std::nullopt;
  SamplingParams sampling;
  uint32_t max_tokens = 0;  // of the answer; 0: as many as the context holds, or none when score_prompt
  std::vector<int32_t> stop_tokens;  // beside the model's end tokens
  bool ignore_eos = false;
  uint32_t top_logprobs = 0;  // 0 to 20
  bool signals = false;       // SampledToken has margin and entropy
  bool score_prompt = false;
  int32_t priority = 0;    // [-100, 100], higher first
  std::string cache_salt;  // prefixes are shared only with sequences of the same one
  // Work for another worker's sake: it is no load that routers are told of, its waits are nobody's latencies,
  // and the block that its last tokens fill in part is the first that the prefix cache gives up.
  bool is_background = false;
  std::optional<MonoTime> deadline;
};

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kError };

struct SequenceStats {
  uint32_t prompt_tokens = 0;
  uint32_t generated_tokens = 0;       // those of `resume` too
  uint32_t cached_tokens = 0;          // of the prompt, found in the prefix cache when the sequence first ran
  uint32_t accepted_draft_tokens = 0;  // of the draft: what it has in common with the answer
  // Of the engine's drafter: verified, and of those in the answer.
  uint32_t speculated_tokens = 0, accepted_speculated_tokens = 0;
  uint32_t preemptions = 0;
  double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
};

struct SequenceResult {
  FinishReason reason = FinishReason::kStop;
  Status error;  // of kError, and of kCancelled: CANCELLED, DEADLINE_EXCEEDED, or UNAVAILABLE (draining,
                 // device_lost) of an engine that hands its sequences over
  SequenceStats stats;
};

// Where the answer of one sequence goes. The engine's loop thread calls it, and the calls must not
// block; any thread may cancel. Exactly one OnFinish, last. Shared by the engine and the caller.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  // Before all else, once: the sequence runs, and so much of its prompt was found in the prefix cache.
  virtual void OnStarted([[maybe_unused]] uint32_t cached_tokens) {}
  // Before the tokens that the engine's own drafts were compared with: what is known of such drafts by then.
  virtual void OnDraftRecord([[maybe_unused]] const DraftRecord& record) {}
  // Tokens [first_index, first_index + tokens.size()) of the answer, from the first behind `resume` on: no
  // gap, no repeat. The end token is sent too.
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
