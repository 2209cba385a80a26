#include "tools/optimize/calibration.h"

#include <algorithm>
#include <string_view>

#include "base/mapped_file.h"
#include "base/shuffle.h"
#include "tools/optimize/text_row.h"

namespace terrace {
namespace {

StatusOr<std::vector<TokenId>> EncodeRow(std::string_view line, const TextAssets& text) {
  ASSIGN_OR_RETURN(TextRow row, ParseTextRow(line));
  if (row.messages.empty()) return text.EncodePrompt(row.text);
  const bool is_answered = row.answer.has_value();
  if (is_answered) row.messages.push_back({.role = "assistant", .content = *std::move(row.answer)});
  return text.EncodeChat(row.messages, /*add_generation_prompt=*/!is_answered);
}

}  // namespace

StatusOr<CalibrationSet> LoadCalibration(const CalibrationOptions& options, const TextAssets& text,
                                         const ModelConfig& config) {
  ASSIGN_OR_RETURN(const std::string file, ReadFile(options.path));
  const std::vector<std::string_view> lines = SplitLines(file);
  if (lines.empty()) return DataLoss(options.path, ": no rows to calibrate with");
  std::vector<size_t> taken = ShuffledIndices(lines.size(), options.seed);
  if (options.samples > 0 && options.samples < taken.size()) taken.resize(options.samples);
  std::ranges::sort(taken);

  CalibrationSet set = {.rows = lines.size(), .digest = HashBytes(file)};
  for (const size_t i : taken) {
    auto tokens = EncodeRow(lines[i], text);
    if (!tokens.ok()) {
      const Status error = DataLoss(options.path, ":", i + 1, ": ", Message(tokens.status()));
      return WithReason(error, Reason(tokens.status()));
    }
    RETURN_IF_ERROR(Annotate(CheckTokens(*tokens, config.vocab_size), Concat(options.path, ":", i + 1)));
    if (tokens->size() > config.context_length) tokens->resize(config.context_length);
    if (tokens->empty()) continue;
    set.tokens += tokens->size();
    set.sequences.push_back(*std::move(tokens));
  }
  if (set.sequences.empty()) return DataLoss(options.path, ": no row has a token to calibrate with");
  return set;
}

}  // namespace terrace
