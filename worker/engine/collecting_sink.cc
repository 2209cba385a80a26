#include "worker/engine/collecting_sink.h"

namespace terrace {

std::vector<int32_t> CollectingSink::Answer::ids() const {
  std::vector<int32_t> ids;
  for (const SampledToken& token : tokens) ids.push_back(token.token);
  return ids;
}

CollectingSink::Answer CollectingSink::Wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return has_ended_; });
  return answer_;
}

bool CollectingSink::HasEndedWithin(Duration limit) {
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, limit, [this] { return has_ended_; });
}

void CollectingSink::OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) {
  std::lock_guard lock(mutex_);
  CHECK(!has_ended_ && first_index == resumed_ + answer_.tokens.size(), "token ", first_index, " after ",
        resumed_ + answer_.tokens.size());
  answer_.tokens.insert(answer_.tokens.end(), tokens.begin(), tokens.end());
}

void CollectingSink::OnPromptScores(uint32_t first_index, std::span<const SampledToken> scores) {
  std::lock_guard lock(mutex_);
  CHECK(!has_ended_ && first_index == answer_.prompt_scores.size() + 1, "score ", first_index, " after ",
        answer_.prompt_scores.size());
  answer_.prompt_scores.insert(answer_.prompt_scores.end(), scores.begin(), scores.end());
}

void CollectingSink::OnFinish(const SequenceResult& result) {
  {
    std::lock_guard lock(mutex_);
    CHECK(!has_ended_, "a second OnFinish");
    answer_.result = result;
    has_ended_ = true;
  }
  ended_.notify_all();
}

}  // namespace terrace
