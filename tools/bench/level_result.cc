#include "tools/bench/level_result.h"

#include <algorithm>
#include <cctype>
#include <cmath>

namespace terrace {

std::string FailureReason(const Status& status) {
  std::string reason = Reason(status);
  if (!reason.empty()) return reason;
  reason = absl::StatusCodeToString(status.code());
  std::transform(reason.begin(), reason.end(), reason.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return reason;
}

void LevelResult::Add(const RequestRecord& record) {
  send_lag.Record(record.sent - record.intended);
  if (record.is_cut) ++cut_requests;
  output_tokens += record.tokens;
  if (record.tokens > 0) {
    prompt_tokens += record.prompt_tokens;
    first_token.Record(record.first_token - record.intended);
  }
  for (const Duration gap : record.gaps) inter_token.Record(gap);

  switch (record.outcome) {
    case Outcome::kCancelled:
      ++cancelled;
      return;
    case Outcome::kFailed: {
      ++failed;
      Failure& failure = failures[FailureReason(record.end.status)];
      if (failure.count++ == 0) failure.example = Message(record.end.status);
      return;
    }
    case Outcome::kOk:
      break;
  }
  min_output_tokens = ok == 0 ? record.tokens : std::min(min_output_tokens, record.tokens);
  max_output_tokens = std::max(max_output_tokens, record.tokens);
  ++ok;
  end_to_end.Record(record.ended - record.intended);
  if (record.end.queue_seconds.has_value())
    queue.Record(Duration(std::llround(*record.end.queue_seconds * 1e9)));
  reported_prompt_tokens += record.end.prompt_tokens.value_or(0);
  cached_tokens += record.end.cached_tokens.value_or(0);
  speculation.Add(record.end.speculated_tokens.value_or(0),
                  record.end.accepted_speculated_tokens.value_or(0));
  if (record.tokens < record.wanted_tokens) {
    ++short_answers;
    if (short_answer_examples.size() < kShortAnswerExamples) {
      short_answer_examples.push_back(
          {.request = record.index, .wanted_tokens = record.wanted_tokens, .tokens = record.tokens});
    }
  }
}

}  // namespace terrace
