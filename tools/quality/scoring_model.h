// A model in this process whose logits can be looked at, on CPUs: one text at a time. Owns its weights,
// threads and KV memory. Used by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/parallel_for.h"
#include "base/status.h"
#include "tools/quality/divergence.h"
#include "worker/formats/model_files.h"
#include "worker/kv/kv_pool.h"
#include "worker/model/transformer.h"

namespace terrace {

struct ScoringOptions {
  std::string model = {};                           // a folder or a .gguf file
  uint32_t threads = 0;                             // 0: all cores this process may use
  uint32_t max_tokens = 0;                          // of the longest text; 0: the model's context
  std::string compute = "auto", kv_dtype = "auto";  // as of OpenEngineOptions, on CPUs
  std::function<bool()> is_cancelled = nullptr;     // asked while weights are loaded
};

class ScoringModel {
 public:
  // Errors of OpenModel and Transformer::Load; INVALID_ARGUMENT for an unknown compute or kv_dtype.
  static StatusOr<std::unique_ptr<ScoringModel>> Open(const ScoringOptions& options);

  const ModelFiles& files() const { return *files_; }
  uint32_t max_tokens() const { return max_tokens_; }

  // The logits [count, vocab_size] behind each of tokens [first, first + count), at most max_tokens() in all.
  // The ones before `first` were given in the call before, with the same tokens. Valid until the next call.
  std::span<const float> Score(std::span<const int32_t> tokens, size_t first, size_t count);

 private:
  ScoringModel() = default;

  // In the order in which they borrow from one another.
  std::unique_ptr<ModelFiles> files_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Transformer> transformer_;
  std::unique_ptr<KvPool> kv_;
  BlockTable blocks_;  // all of the pool's
  uint32_t max_tokens_ = 0;
};

// Adds every position of `tokens` that another one follows, as far as both models' max_tokens reach. The two
// have the same vocabulary, which holds the tokens (CHECK). Errors of DivergenceMeter::Add.
Status AddDivergence(ScoringModel& candidate, ScoringModel& baseline, std::span<const int32_t> tokens,
                     DivergenceMeter& meter);

}  // namespace terrace
