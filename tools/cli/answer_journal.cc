#include "tools/cli/answer_journal.h"

#include <utility>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/strict_fields.h"

namespace terrace {
namespace {

constexpr char kFormat[] = "terrace-answers-3";

Json ToJson(const JournalHead& head) {
  return {{"format", kFormat},
          {"model", head.model},
          {"model_digest", head.model_digest},
          {"text_digest", head.text_digest},
          {"runtime", head.runtime},
          {"build", head.build},
          {"scored_rows_digest", head.scored_rows_digest},
          {"max_tokens", head.max_tokens}};
}

Json ToJson(size_t place, const RowOutcome& outcome) {
  const Score& score = outcome.score;
  return {{"row", place},
          {"text", outcome.text},
          {"tier", outcome.tier},
          {"mean_logprob", outcome.mean_logprob},
          {"prompt_tokens", score.prompt_tokens},
          {"completion_tokens", score.completion_tokens},
          {"speculated_tokens", score.speculated_tokens},
          {"accepted_speculated_tokens", score.accepted_speculated_tokens},
          {"price_usd", score.price_usd},
          {"cost", score.cost},
          {"seconds", score.total_seconds}};
}

StatusOr<JournalHead> ParseHead(std::string_view line) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(line));
  StrictFields fields(json, "");
  const std::string format = fields.Text("format");
  if (!format.empty() && format != kFormat)  // whatever else it has
    return InvalidArgument("format \"", format, "\", this version reads ", kFormat);
  const JournalHead head{.model = fields.Text("model"),
                         .model_digest = fields.Text("model_digest"),
                         .text_digest = fields.Text("text_digest"),
                         .runtime = fields.Text("runtime"),
                         .build = fields.Text("build"),
                         .scored_rows_digest = fields.Text("scored_rows_digest"),
                         .max_tokens = fields.SmallCount("max_tokens")};
  RETURN_IF_ERROR(fields.Finish());
  return head;
}

Status ParseAnswer(std::string_view line, size_t rows, std::map<size_t, RowOutcome>& outcomes) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(line));
  StrictFields fields(json, "");
  const uint64_t place = fields.Count("row");
  RowOutcome outcome{.text = fields.Text("text"),
                     .tier = fields.Text("tier"),
                     .mean_logprob = fields.Number("mean_logprob")};
  Score& score = outcome.score;
  score.prompt_tokens = fields.Count("prompt_tokens");
  score.completion_tokens = fields.Count("completion_tokens");
  score.speculated_tokens = fields.Count("speculated_tokens");
  score.accepted_speculated_tokens = fields.Count("accepted_speculated_tokens");
  score.price_usd = fields.Number("price_usd");
  score.cost = fields.Number("cost");
  score.total_seconds = fields.Number("seconds");
  RETURN_IF_ERROR(fields.Finish());
  if (place >= rows) return InvalidArgument("row ", place, " of ", rows);
  if (outcomes.emplace(place, std::move(outcome)).second) return {};
  return InvalidArgument("row ", place, " is there twice");
}

Status OfOthers(const std::string& path, const char* what) {
  return FailedPrecondition(path, ": has answers ", what, ": name another file, or remove it");
}

// Which part of two heads differs; null: none.
const char* Difference(const JournalHead& has, const JournalHead& wanted) {
  if (has.scored_rows_digest != wanted.scored_rows_digest) return "to other rows";
  if (has.max_tokens != wanted.max_tokens) return "of another --max-tokens";
  if (has.model_digest.empty() && !wanted.model_digest.empty())
    return "of a model whose weights were not known then (--router-ops)";
  if (wanted.model_digest.empty() && !has.model_digest.empty())
    return "of a model whose weights were known then, and are not now (--router-ops)";
  if (has.model_digest != wanted.model_digest || has.text_digest != wanted.text_digest)
    return "of another model";
  if (wanted.model_digest.empty() && has.model != wanted.model) return "of another model";
  if (has.runtime != wanted.runtime)
    return "of a model on another device, or with another --compute or --kv-dtype";
  return has.build != wanted.build ? "of another build of terrace" : nullptr;
}

}  // namespace

StatusOr<RecordedAnswers> ParseAnswers(std::string_view text, const std::vector<TaskRow>& scored_rows) {
  RecordedAnswers out;
  size_t line_number = 0;
  for (size_t end = text.find('\n'); end != std::string_view::npos; end = text.find('\n', out.bytes)) {
    const std::string_view line = text.substr(out.bytes, end - out.bytes);
    const std::string place = Concat("line ", ++line_number);
    if (line_number == 1) {
      StatusOr<JournalHead> head = ParseHead(line);
      if (!head.ok()) return DataLoss(place, ": ", Message(head.status()));
      out.head = *std::move(head);
    } else if (const Status parsed = ParseAnswer(line, scored_rows.size(), out.outcomes); !parsed.ok()) {
      return DataLoss(place, ": ", Message(parsed));
    }
    out.bytes = end + 1;
  }
  return out;
}

StatusOr<RecordedAnswers> ReadAnswers(const std::string& path, const std::vector<TaskRow>& scored_rows,
                                      uint32_t max_tokens) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  StatusOr<RecordedAnswers> answers = ParseAnswers(text, scored_rows);
  if (!answers.ok()) return Annotate(answers.status(), path);
  JournalHead wanted = answers->head;
  wanted.scored_rows_digest = TaskSetDigest(scored_rows).Hex();
  wanted.max_tokens = max_tokens;
  if (const char* const what = Difference(answers->head, wanted)) return OfOthers(path, what);
  return answers;
}

StatusOr<AnswerJournal> AnswerJournal::Open(const std::string& path, const JournalHead& head,
                                            const std::vector<TaskRow>& scored_rows) {
  ASSIGN_OR_RETURN(LineAppender lines, LineAppender::Open(path));
  StatusOr<RecordedAnswers> found = ParseAnswers(lines.text(), scored_rows);
  if (!found.ok()) return Annotate(found.status(), path);
  const std::string head_line = ToJsonText(ToJson(head));
  if (found->bytes > 0) {
    if (const char* const what = Difference(found->head, head)) return OfOthers(path, what);
    RETURN_IF_ERROR(lines.Keep(found->bytes));
  } else if (head_line.starts_with(lines.text())) {
    RETURN_IF_ERROR(lines.Append(head_line.substr(lines.text().size())));
  } else {
    return FailedPrecondition(path, ": has no answers but something else: name another file, or remove it");
  }
  return AnswerJournal(std::move(lines), std::move(found->outcomes));
}

Status AnswerJournal::Add(size_t place, const RowOutcome& outcome) {
  return lines_.Append(ToJsonText(ToJson(place, outcome)));
}

}  // namespace terrace
