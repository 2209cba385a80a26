// A TokenSink that keeps everything and lets a thread wait for the end: for callers that want the whole
// answer (warm-up, evaluation, tests). Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "worker/engine/sequence.h"

namespace terrace {

class CollectingSink : public TokenSink {
 public:
  struct Answer {
    std::vector<SampledToken> tokens;         // behind what was resumed
    std::vector<SampledToken> prompt_scores;  // of prompt tokens 1, 2, ...
    SequenceResult result;
    std::vector<int32_t> ids() const;
  };

  // Of a sequence that resumes `resumed` tokens.
  explicit CollectingSink(size_t resumed = 0) : resumed_(resumed) {}

  // Blocks until the sequence has ended. Needs an engine that was given this sink and that runs or is
  // stopped.
  Answer Wait();
  // Whether it has ended, which it may do for `limit`.
  bool HasEndedWithin(Duration limit);
  // The engine drops the sequence before its next step.
  void Cancel() { is_closed_ = true; }

  void OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) override;
  void OnPromptScores(uint32_t first_index, std::span<const SampledToken> scores) override;
  void OnFinish(const SequenceResult& result) override;
  bool is_closed() const override { return is_closed_; }

 private:
  const size_t resumed_;
  std::atomic<bool> is_closed_ = false;
  std::mutex mutex_;
  std::condition_variable ended_;
  Answer answer_;           // GUARDED_BY(mutex_)
  bool has_ended_ = false;  // GUARDED_BY(mutex_)
};

}  // namespace terrace
