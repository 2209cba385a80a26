#include "router/tier/records.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/json.h"
#include "base/strict_fields.h"
#include "router/tier/gate.h"

namespace terrace {
namespace {

constexpr char kFormat[] = "terrace-records-1";

Json ToJson(const PromptTraits& prompt) {
  return {{"bytes", prompt.bytes},
          {"digits", prompt.digits},
          {"questions", prompt.questions},
          {"newlines", prompt.newlines},
          {"braces", prompt.braces}};
}

StatusOr<PromptTraits> ParsePrompt(const Json& json) {
  StrictFields fields(json, "prompt");
  PromptTraits prompt;
  prompt.bytes = fields.SmallCount("bytes");
  prompt.digits = fields.SmallCount("digits");
  prompt.questions = fields.SmallCount("questions");
  prompt.newlines = fields.SmallCount("newlines");
  prompt.braces = fields.SmallCount("braces");
  RETURN_IF_ERROR(fields.Finish());
  return prompt;
}

StatusOr<Record> ParseRow(std::string_view line, size_t tiers) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(line));
  StrictFields fields(json, "");
  Record record;
  record.id = fields.Text("id");
  record.task = fields.Text("task");
  const Json& prompt = fields.Object("prompt");
  const Json& answers = fields.List("answers");
  RETURN_IF_ERROR(fields.Finish());
  ASSIGN_OR_RETURN(record.prompt, ParsePrompt(prompt));
  if (answers.size() != tiers)
    return InvalidArgument("\"answers\" must be one a tier, ", tiers, ", got ", answers.size());
  for (size_t i = 0; i < answers.size(); ++i) {
    ASSIGN_OR_RETURN(RecordedAnswer answer, ParseRecordedAnswer(answers[i], Concat("answers[", i, "]")));
    record.answers.push_back(std::move(answer));
  }
  return record;
}

}  // namespace

Json RecordedTierJson(const RecordedTier& tier) {
  return {{"name", tier.name},
          {"model_digest", tier.model_digest},
          {"text_digest", tier.text_digest},
          {"parameters", tier.parameters}};
}

Json RecordedAnswerJson(const RecordedAnswer& answer) {
  const AnswerSignals& signals = answer.signals;
  return {{"right", answer.is_right},
          {"prompt_tokens", answer.prompt_tokens},
          {"tokens", signals.tokens},
          {"mean_logprob", signals.mean_logprob},
          {"min_logprob", signals.min_logprob},
          {"mean_margin", signals.mean_margin},
          {"min_margin", signals.min_margin},
          {"mean_entropy", signals.mean_entropy},
          {"first_logprob", signals.first_logprob},
          {"first_margin", signals.first_margin},
          {"first_entropy", signals.first_entropy},
          {"draft_agreement", answer.draft_agreement}};
}

StatusOr<RecordedTier> ParseRecordedTier(const Json& json, const std::string& place) {
  StrictFields fields(json, place);
  RecordedTier tier;
  tier.name = fields.Text("name");
  tier.model_digest = fields.Text("model_digest");
  tier.text_digest = fields.Text("text_digest");
  tier.parameters = fields.Count("parameters");
  RETURN_IF_ERROR(fields.Finish());
  return tier;
}

StatusOr<RecordedAnswer> ParseRecordedAnswer(const Json& json, const std::string& place) {
  StrictFields fields(json, place);
  RecordedAnswer answer;
  AnswerSignals& signals = answer.signals;
  answer.is_right = fields.Flag("right");
  answer.prompt_tokens = fields.SmallCount("prompt_tokens");
  signals.tokens = fields.SmallCount("tokens");
  signals.mean_logprob = fields.Number("mean_logprob");
  signals.min_logprob = fields.Number("min_logprob");
  signals.mean_margin = fields.Number("mean_margin");
  signals.min_margin = fields.Number("min_margin");
  signals.mean_entropy = fields.Number("mean_entropy");
  signals.first_logprob = fields.Number("first_logprob");
  signals.first_margin = fields.Number("first_margin");
  signals.first_entropy = fields.Number("first_entropy");
  answer.draft_agreement = fields.Number("draft_agreement");
  RETURN_IF_ERROR(fields.Finish());
  if (signals.tokens == 0) return InvalidArgument(place, ": an answer has at least one token");
  return answer;
}

bool RecordedAnswer::is_recordable() const {
  return signals.tokens > 0 && std::ranges::all_of(GateScorer::ValuesOf(signals),
                                                   [](double value) { return std::isfinite(value); });
}

double AgreementWith(const std::vector<int32_t>& draft, const std::vector<int32_t>& answer) {
  if (draft.empty()) return 0;
  const auto differs = std::mismatch(draft.begin(), draft.end(), answer.begin(), answer.end()).first;
  return static_cast<double>(differs - draft.begin()) / static_cast<double>(draft.size());
}

double Records::Cost(const Record& record, size_t tier) const {
  const RecordedAnswer& answer = record.answers[tier];
  return static_cast<double>(tiers[tier].parameters) *
         (static_cast<double>(answer.prompt_tokens) + answer.signals.tokens);
}

std::string RecordsHead(const std::vector<RecordedTier>& tiers) {
  Json list = Json::array();
  for (const RecordedTier& tier : tiers) list.push_back(RecordedTierJson(tier));
  return ToJsonText({{"format", kFormat}, {"tiers", std::move(list)}}) + "\n";
}

std::string RecordLine(const Record& record) {
  Json answers = Json::array();
  for (const RecordedAnswer& answer : record.answers) answers.push_back(RecordedAnswerJson(answer));
  return ToJsonText({{"id", record.id},
                     {"task", record.task},
                     {"prompt", ToJson(record.prompt)},
                     {"answers", std::move(answers)}}) +
         "\n";
}

StatusOr<std::vector<RecordedTier>> ParseRecordsHead(std::string_view line) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(line));
  StrictFields fields(json, "");
  const std::string format = fields.Text("format");
  const Json& list = fields.List("tiers");
  RETURN_IF_ERROR(fields.Finish());
  if (format != kFormat) return InvalidArgument("format \"", format, "\", this version reads ", kFormat);
  std::vector<RecordedTier> tiers;
  for (size_t i = 0; i < list.size(); ++i) {
    ASSIGN_OR_RETURN(RecordedTier tier, ParseRecordedTier(list[i], Concat("tiers[", i, "]")));
    const bool is_known =
        std::any_of(tiers.begin(), tiers.end(), [&](const auto& other) { return other.name == tier.name; });
    if (is_known) return InvalidArgument("tier ", tier.name, " occurs twice");
    tiers.push_back(std::move(tier));
  }
  if (tiers.size() < 2) return InvalidArgument("\"tiers\" must be 2 or more, got ", tiers.size());
  return tiers;
}

std::string RecordsText(const Records& records) {
  std::string text = RecordsHead(records.tiers);
  for (const Record& record : records.rows) text += RecordLine(record);
  return text;
}

StatusOr<Records> ParseRecords(std::string_view text) {
  Records records;
  size_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    const std::string place = Concat("line ", ++line_number);
    if (line_number == 1) {
      StatusOr<std::vector<RecordedTier>> tiers = ParseRecordsHead(line);
      if (!tiers.ok()) return DataLoss(place, ": ", Message(tiers.status()));
      records.tiers = *std::move(tiers);
    } else {
      StatusOr<Record> row = ParseRow(line, records.tiers.size());
      if (!row.ok()) return DataLoss(place, ": ", Message(row.status()));
      records.rows.push_back(*std::move(row));
    }
    begin = end + 1;
  }
  if (records.rows.empty()) return DataLoss("no records");
  return records;
}

}  // namespace terrace
