// A TokenSink of the soak: collects an answer, closes itself or becomes full after so many tokens, and lets
// its client wait. Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <vector>

#include "worker/engine/sequence.h"

namespace terrace {

class SoakSink : public TokenSink {
 public:
  static constexpr size_t kNever = std::numeric_limits<size_t>::max();

  SoakSink(size_t closes_after, size_t fills_after)
      : closes_after_(closes_after),
        fills_after_(fills_after),
        is_closed_(closes_after == 0),
        is_full_(fills_after == 0) {}

  void OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) override {
    std::lock_guard lock(mutex_);
    CHECK(!has_ended_ && first_index == tokens_.size(), "token ", first_index, " after ", tokens_.size());
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    if (tokens_.size() >= closes_after_) is_closed_ = true;
    if (tokens_.size() >= fills_after_ && !was_read_) is_full_ = true;
    changed_.notify_all();
  }
  void OnPromptScores(uint32_t first_index, std::span<const SampledToken> scores) override {
    std::lock_guard lock(mutex_);
    CHECK(!has_ended_ && first_index == scores_.size() + 1, "score ", first_index, " after ", scores_.size());
    scores_.insert(scores_.end(), scores.begin(), scores.end());
  }
  void OnFinish(const SequenceResult& result) override {
    std::lock_guard lock(mutex_);
    CHECK(!has_ended_, "a second OnFinish");
    result_ = result;
    has_ended_ = true;
    changed_.notify_all();
  }
  bool is_closed() const override { return is_closed_; }
  bool is_full() const override { return is_full_; }

  // Until it is full or the sequence has ended; whether it is full.
  bool AwaitFullOrEnd() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return is_full_ || has_ended_; });
    return !has_ended_;
  }
  void AwaitEnd() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return has_ended_; });
  }
  // There is room again, for good.
  void Read() {
    std::lock_guard lock(mutex_);
    was_read_ = true;
    is_full_ = false;
  }

  // Once the sequence has ended.
  const std::vector<SampledToken>& tokens() const { return tokens_; }
  const std::vector<SampledToken>& scores() const { return scores_; }
  const SequenceResult& result() const { return result_; }

 private:
  const size_t closes_after_, fills_after_;
  std::atomic<bool> is_closed_, is_full_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool was_read_ = false, has_ended_ = false;  // GUARDED_BY(mutex_), as all below until the end
  std::vector<SampledToken> tokens_, scores_;
  SequenceResult result_;
};

}  // namespace terrace
