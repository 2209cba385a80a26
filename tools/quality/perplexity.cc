#include "tools/quality/perplexity.h"

#include <algorithm>

#include "tools/quality/logits.h"

namespace terrace {
namespace {

constexpr size_t kChunk = 64;  // tokens whose logits are in memory at once

// Adds the surprises of tokens [first, end) of a window.
Status ReadWindow(ScoringModel& model, std::span<const int32_t> window, size_t first,
                  std::vector<double>& out) {
  const size_t vocabulary = model.files().config.vocab_size, positions = window.size() - 1;
  for (size_t begin = 0; begin < positions; begin += kChunk) {
    const size_t count = std::min(kChunk, positions - begin);
    const std::span<const float> logits = model.Score(window, begin, count);
    for (size_t i = 0; i < count; ++i) {
      const size_t token = begin + i + 1;
      if (token < first) continue;
      const auto row = logits.subspan(i * vocabulary, vocabulary);
      ASSIGN_OR_RETURN(const NormalizedLogits normalized, Normalize(row, "model"));
      out.push_back(normalized.log_sum - row[static_cast<size_t>(window[token])]);
    }
  }
  return Status();
}

}  // namespace

StatusOr<std::vector<double>> Surprises(ScoringModel& model, std::span<const int32_t> tokens,
                                        const TextWindows& windows,
                                        const std::function<Status(size_t done)>& on_window) {
  const size_t window = windows.window, stride = windows.stride;
  CHECK(window >= 2 && window <= model.max_tokens() && stride >= 1 && stride < window, "windows of ", window,
        " and ", stride, ", limit ", model.max_tokens());
  std::vector<double> out;
  size_t done = std::min<size_t>(1, tokens.size());  // before the first token is nothing
  for (size_t begin = 0; done < tokens.size(); begin += stride) {
    const size_t end = std::min(begin + window, tokens.size());
    RETURN_IF_ERROR(ReadWindow(model, tokens.subspan(begin, end - begin), done - begin, out));
    done = end;
    RETURN_IF_ERROR(on_window(done));
  }
  return out;
}

}  // namespace terrace
