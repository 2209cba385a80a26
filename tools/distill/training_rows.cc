#include "tools/distill/training_rows.h"

#include <algorithm>
#include <numeric>
#include <string_view>
#include <utility>

#include "base/mapped_file.h"
#include "tools/optimize/text_row.h"
#include "worker/formats/byte_reader.h"

namespace terrace {
namespace {

StatusOr<TrainingRow> EncodeChatRow(TextRow row, const TextAssets& text) {
  if (!row.answer && row.messages.back().role == "assistant") {
    row.answer = std::move(row.messages.back().content);
    row.messages.pop_back();
  }
  if (!row.answer)
    return InvalidArgument(
        "a chat without an answer: neither \"expected\" nor a last message of the assistant");
  if (row.messages.empty()) return InvalidArgument("an answer to no message");
  TrainingRow out = {.is_chat = true};
  ASSIGN_OR_RETURN(const std::vector<TokenId> prompt, text.EncodeChat(row.messages));
  row.messages.push_back({.role = "assistant", .content = *std::move(row.answer)});
  ASSIGN_OR_RETURN(out.tokens, text.EncodeChat(row.messages, /*add_generation_prompt=*/false));
  const auto parted = std::ranges::mismatch(prompt, out.tokens);
  out.answer = std::max<size_t>(1, static_cast<size_t>(parted.in1 - prompt.begin()));
  return out;
}

StatusOr<TrainingRow> EncodeTrainingRow(std::string_view line, const TextAssets& text) {
  ASSIGN_OR_RETURN(TextRow row, ParseTextRow(line));
  if (!row.messages.empty()) return EncodeChatRow(std::move(row), text);
  return TrainingRow{.tokens = text.EncodePrompt(row.text)};
}

bool HasWeight(const TrainingRow& row, const RowWeights& weights) {
  for (size_t token = 1; token < row.tokens.size(); ++token) {
    if (weights.Of(row, token) > 0) return true;
  }
  return false;
}

Status AddFile(const std::string& path, const TextAssets& text, uint32_t vocab_size, size_t max_tokens,
               const RowWeights& weights, TrainingRows& out) {
  ASSIGN_OR_RETURN(const auto file, MappedFile::Open(path));
  size_t line = 0;
  for (const std::string_view each : SplitLines(AsText(file->bytes()))) {
    ++line;
    auto row = EncodeTrainingRow(each, text);
    if (row.ok()) {
      if (const Status known = CheckTokens(row->tokens, vocab_size); !known.ok()) row = known;
    }
    if (!row.ok())
      return WithReason(DataLoss(path, ":", line, ": ", Message(row.status())), Reason(row.status()));
    if (row->tokens.size() > max_tokens) {
      row->tokens.resize(max_tokens);
      row->answer = std::min(row->answer, max_tokens);
      ++out.cut;
    }
    if (row->tokens.size() < 2 || !HasWeight(*row, weights)) {
      ++out.left_out;
      continue;
    }
    out.tokens += row->tokens.size();
    out.rows.push_back(*std::move(row));
  }
  return Status();
}

}  // namespace

StatusOr<TrainingRows> LoadTrainingRows(const std::vector<std::string>& paths, const TextAssets& text,
                                        uint32_t vocab_size, size_t max_tokens, const RowWeights& weights) {
  TrainingRows out;
  for (const std::string& path : paths) {
    const size_t before = out.rows.size();
    RETURN_IF_ERROR(AddFile(path, text, vocab_size, max_tokens, weights, out));
    if (out.rows.size() == before) return DataLoss(path, ": no row has a token to predict");
  }
  return out;
}

Hash128 RowsDigest(const std::vector<TrainingRow>& rows) {
  std::vector<uint32_t> all(rows.size());
  std::iota(all.begin(), all.end(), 0u);
  return RowsDigest(rows, all);
}

Hash128 RowsDigest(const std::vector<TrainingRow>& rows, std::span<const uint32_t> indices) {
  Hasher hasher;
  for (const uint32_t index : indices) {
    const TrainingRow& row = rows[index];
    hasher.Add(AsText(std::as_bytes(std::span(row.tokens)))).Add(row.answer).Add(row.is_chat ? 1 : 0);
  }
  return hasher.Finish();
}

}  // namespace terrace
