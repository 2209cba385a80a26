// The log-probabilities of a prompt's tokens as one attempt's worker sends them. Owned by the attempt; one
// thread at a time.
#pragma once

#include <memory>
#include <vector>

#include "router/cluster/replica_client.h"
#include "router/dispatch/prompt.h"
#include "router/request/answer.h"
#include "text/text_assets.h"

namespace terrace {

class PromptScores {
 public:
  // `top` alternatives are kept.
  PromptScores(PromptPtr prompt, std::shared_ptr<const TextAssets> text, uint32_t vocab_size, uint32_t top);

  // The next ones. INTERNAL (worker_protocol) when they are not of the prompt's next tokens.
  Status Add(const std::vector<WorkerToken>& scores);
  bool has_any() const { return count_ > 1; }
  Status CheckComplete() const;  // the same error, when some are missing
  // All tokens of the prompt, the first with log-probability 0. Control tokens have bytes too. Once.
  std::vector<AnswerToken> Take() { return std::move(tokens_); }

 private:
  void Append(const WorkerToken& token);

  const PromptPtr prompt_;
  const std::shared_ptr<const TextAssets> text_;
  const uint32_t vocab_size_, top_;
  size_t count_ = 0;  // of the prompt's tokens so far, also when they are taken
  std::vector<AnswerToken> tokens_;
};

}  // namespace terrace
