// Labelled records: what each tier answered to a set of prompts, as numbers, and whether it was right. The
// file is JSON lines: a head that names the tiers, then a line a prompt. `terrace calibrate` learns from
// them, and a router may write them of its traffic (records_file.h). Values; pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/status.h"
#include "router/tier/answer_signals.h"
#include "router/tier/calibration_features.h"

namespace terrace {

struct RecordedTier {
  std::string name = {}, model_digest = {}, text_digest = {};
  uint64_t parameters = 0;

  friend bool operator==(const RecordedTier&, const RecordedTier&) = default;
};

struct RecordedAnswer {
  bool is_right = false;
  uint32_t prompt_tokens = 0;
  AnswerSignals signals = {};  // with margins and entropies
  double draft_agreement = 0;  // AgreementWith the tier before's

  // Whether a file can have it: an answer has a token at least, and numbers are finite (the margin of a model
  // that knows but one token is not).
  bool is_recordable() const;
};

// The share of `draft`, counted from its start, that `answer` has too; 0 of no draft.
double AgreementWith(const std::vector<int32_t>& draft, const std::vector<int32_t>& answer);

struct Record {
  std::string id = {}, task = {};
  PromptTraits prompt = {};
  std::vector<RecordedAnswer> answers = {};  // [tiers]
};

struct Records {
  std::vector<RecordedTier> tiers = {};  // cheapest first, two or more
  std::vector<Record> rows = {};

  // What an answer costs, whatever the hardware: parameters x (prompt + generated tokens).
  double Cost(const Record& record, size_t tier) const;
};

// Parts of their lines, for who keeps them before the lines are whole. INVALID_ARGUMENT names what is wrong
// at `place`.
Json RecordedTierJson(const RecordedTier& tier);
Json RecordedAnswerJson(const RecordedAnswer& answer);
StatusOr<RecordedTier> ParseRecordedTier(const Json& json, const std::string& place);
StatusOr<RecordedAnswer> ParseRecordedAnswer(const Json& json, const std::string& place);

// Lines, with their ends.
std::string RecordsHead(const std::vector<RecordedTier>& tiers);
std::string RecordLine(const Record& record);
// INVALID_ARGUMENT for a line, without its end, that is no head.
StatusOr<std::vector<RecordedTier>> ParseRecordsHead(std::string_view line);

std::string RecordsText(const Records& records);
// DATA_LOSS "line N: ..." for what is not as RecordsText writes it.
StatusOr<Records> ParseRecords(std::string_view text);

}  // namespace terrace
