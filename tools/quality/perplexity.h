// How likely a model finds a text: the surprise -ln p of each token behind those before it, and perplexity,
// exp of the mean surprise (Jelinek et al., "Perplexity - a measure of the difficulty of speech recognition
// tasks", JASA 62, 1977). Texts longer than a window are read in windows that overlap, as is usual
// (https://huggingface.co/docs/transformers/perplexity).
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "tools/quality/scoring_model.h"

namespace terrace {

struct Surprise {
  uint64_t tokens = 0;
  double nats = 0;  // of all

  void Add(std::span<const double> of_tokens) {
    tokens += of_tokens.size();
    for (const double each : of_tokens) nats += each;
  }
  double mean() const { return tokens == 0 ? 0 : nats / static_cast<double>(tokens); }
  double perplexity() const { return std::exp(mean()); }
};

struct TextWindows {
  uint32_t window = 0;  // tokens that are read together, 2 at least; at most the model's max_tokens()
  uint32_t stride = 0;  // from the beginning of one to the next; 1 to window - 1
};

// The surprise of each token but the first, in nats: tokens.size() - 1 of them, none of an empty text. Each
// is that of one window: the first has tokens [0, window), the next begins `stride` later and counts for the
// `stride` tokens that are new in it, so that at least window - stride tokens are before each, or all there
// are. `on_window` is called after each window with the tokens that are done; its error ends the work. Errors
// of Normalize.
StatusOr<std::vector<double>> Surprises(
    ScoringModel& model, std::span<const int32_t> tokens, const TextWindows& windows,
    const std::function<Status(size_t done)>& on_window = [](size_t) { return Status(); });

}  // namespace terrace
