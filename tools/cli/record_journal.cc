#include "tools/cli/record_journal.h"

#include "base/json.h"
#include "base/strict_fields.h"

namespace terrace {
namespace {

constexpr char kFormat[] = "terrace-records-journal-2";

Json ToJson(const RecordJournalHead& head) {
  return {
      {"format", kFormat}, {"scored_rows_digest", head.scored_rows_digest}, {"max_tokens", head.max_tokens}};
}

Json ToJson(const JournaledTier& tier) {
  return {{"tier", RecordedTierJson(tier.tier)}, {"runtime", tier.runtime}, {"build", tier.build}};
}

Json ToJson(size_t row, const JournaledAnswer& answer) {
  return {{"row", row}, {"answer", RecordedAnswerJson(answer.answer)}, {"ids", answer.ids}};
}

StatusOr<RecordJournalHead> ParseHead(std::string_view line) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(line));
  StrictFields fields(json, "");
  const std::string format = fields.Text("format");
  if (!format.empty() && format != kFormat)  // whatever else it has
    return InvalidArgument("format \"", format, "\", this version reads ", kFormat);
  RecordJournalHead head{.scored_rows_digest = fields.Text("scored_rows_digest"),
                         .max_tokens = fields.SmallCount("max_tokens")};
  RETURN_IF_ERROR(fields.Finish());
  return head;
}

StatusOr<JournaledTier> ParseTierLine(const Json& json) {
  StrictFields fields(json, "");
  const Json& tier = fields.Object("tier");
  JournaledTier out{.runtime = fields.Text("runtime"), .build = fields.Text("build")};
  RETURN_IF_ERROR(fields.Finish());
  ASSIGN_OR_RETURN(out.tier, ParseRecordedTier(tier, "tier"));
  return out;
}

StatusOr<std::pair<size_t, JournaledAnswer>> ParseAnswerLine(const Json& json, size_t rows) {
  StrictFields fields(json, "");
  const uint64_t row = fields.Count("row");
  const Json &answer = fields.Object("answer"), &ids = fields.List("ids");
  RETURN_IF_ERROR(fields.Finish());
  if (row >= rows) return InvalidArgument("row ", row, " of ", rows);
  JournaledAnswer out;
  ASSIGN_OR_RETURN(out.answer, ParseRecordedAnswer(answer, "answer"));
  for (const Json& id : ids) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX)
      return InvalidArgument("\"ids\" must be token ids");
    out.ids.push_back(id.get<int32_t>());
  }
  return std::pair{static_cast<size_t>(row), std::move(out)};
}

Status OfOthers(const std::string& path, const std::string& what) {
  return FailedPrecondition(path, ": has answers ", what, ": name another --save-records, or remove it");
}

}  // namespace

Status RecordJournal::ParseLine(std::string_view line, size_t rows, std::vector<Known>& tiers) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(line));
  if (json.is_object() && json.contains("tier")) {
    ASSIGN_OR_RETURN(JournaledTier tier, ParseTierLine(json));
    if (!tiers.empty() && tiers.back().answers.size() != rows) {
      return InvalidArgument("another tier, though the one before has ", tiers.back().answers.size(),
                             " answers of ", rows);
    }
    tiers.push_back({.tier = std::move(tier)});
    return {};
  }
  if (tiers.empty()) return InvalidArgument("an answer before any tier");
  ASSIGN_OR_RETURN(auto answer, ParseAnswerLine(json, rows));
  if (tiers.back().answers.insert(std::move(answer)).second) return {};
  return InvalidArgument("a row is there twice");
}

StatusOr<RecordJournal::Parsed> RecordJournal::Parse(std::string_view text, const RecordJournalHead& head,
                                                     size_t rows) {
  Parsed out;
  size_t line_number = 0;
  for (size_t end = text.find('\n'); end != std::string_view::npos; end = text.find('\n', out.bytes)) {
    const std::string_view line = text.substr(out.bytes, end - out.bytes);
    const std::string place = Concat("line ", ++line_number);
    if (line_number == 1) {
      const StatusOr<RecordJournalHead> has = ParseHead(line);
      if (!has.ok()) return DataLoss(place, ": ", Message(has.status()));
      if (has->scored_rows_digest != head.scored_rows_digest)
        return FailedPrecondition("has answers to other rows");
      if (has->max_tokens != head.max_tokens)
        return FailedPrecondition("has answers of another --max-tokens");
    } else if (const Status parsed = ParseLine(line, rows, out.tiers); !parsed.ok()) {
      return DataLoss(place, ": ", Message(parsed));
    }
    out.bytes = end + 1;
  }
  return out;
}

StatusOr<RecordJournal> RecordJournal::Open(const std::string& path, const RecordJournalHead& head,
                                            size_t rows) {
  ASSIGN_OR_RETURN(LineAppender lines, LineAppender::Open(path));
  StatusOr<Parsed> found = Parse(lines.text(), head, rows);
  if (!found.ok()) return Annotate(found.status(), path);
  const std::string head_line = ToJsonText(ToJson(head));
  if (found->bytes > 0) {
    RETURN_IF_ERROR(lines.Keep(found->bytes));
  } else if (head_line.starts_with(lines.text())) {
    RETURN_IF_ERROR(lines.Append(head_line.substr(lines.text().size())));
  } else {
    return FailedPrecondition(path, ": is no journal of records: remove it, or name another --save-records");
  }
  return RecordJournal(path, std::move(found->tiers), std::move(lines));
}

StatusOr<const RecordJournal::Answers*> RecordJournal::Begin(const JournaledTier& tier) {
  const size_t index = begun_++;
  if (index >= tiers_.size()) {
    RETURN_IF_ERROR(lines_.Append(ToJsonText(ToJson(tier))));
    tiers_.push_back({.tier = tier});
  }
  const Known& known = tiers_[index];
  if (known.tier.tier != tier.tier)
    return OfOthers(path_, Concat("of another model than ", tier.tier.name, "'s"));
  if (known.tier.runtime != tier.runtime) {
    return OfOthers(
        path_, Concat("of ", tier.tier.name, " on another device, or with another --compute or --kv-dtype"));
  }
  if (known.tier.build != tier.build)
    return OfOthers(path_, Concat("of ", tier.tier.name, " of another build of terrace"));
  return &known.answers;
}

Status RecordJournal::Add(size_t row, JournaledAnswer answer) {
  CHECK(begun_ == tiers_.size(), "answers of a tier that is not the last one");
  const std::string line = ToJsonText(ToJson(row, answer));
  CHECK(tiers_.back().answers.emplace(row, std::move(answer)).second, "row ", row, " twice");
  return lines_.Append(line);
}

}  // namespace terrace
