// Text to train on as tokens: what is predicted of each row, and how much it counts. Values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/status.h"
#include "text/text_assets.h"

namespace terrace {

struct TrainingRow {
  std::vector<TokenId> tokens = {};  // two or more; each but the first is predicted
  size_t answer =
      1;  // of a chat, tokens before its answer; of plain text 1: all that is predicted counts as one
  bool is_chat = false;

  size_t positions() const { return tokens.size() - 1; }  // that predict a token
};

// How much the loss of a predicted token counts; those of answers count 1.
struct RowWeights {
  double prompt = 0.1;  // of a chat, what is not its answer
  double text = 0.6;    // plain text

  double Of(const TrainingRow& row, size_t token) const {
    return !row.is_chat ? text : token < row.answer ? prompt : 1;
  }
};

struct TrainingRows {
  std::vector<TrainingRow> rows = {};  // in the order of the files
  uint64_t tokens = 0;                 // of all
  size_t cut = 0;                      // rows that were longer than max_tokens
  size_t left_out = 0;                 // rows of less than two tokens, or none that counts
};

// The rows of JSON lines (text_row.h) as `text` encodes them, cut at `max_tokens`. A chat has an answer: in
// "expected", or as the last message, of the assistant. It begins where the tokens stop being those of the
// prompt alone. The errors of LoadCalibration.
StatusOr<TrainingRows> LoadTrainingRows(const std::vector<std::string>& paths, const TextAssets& text,
                                        uint32_t vocab_size, size_t max_tokens, const RowWeights& weights);

// Of tokens and answers: rows of the same digest are trained on alike.
Hash128 RowsDigest(const std::vector<TrainingRow>& rows);
// The same of some of them, in the order of `indices`.
Hash128 RowsDigest(const std::vector<TrainingRow>& rows, std::span<const uint32_t> indices);

}  // namespace terrace
