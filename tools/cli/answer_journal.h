// The answers of one model to one set of rows, in a file that grows with each: a run that was ended goes on
// where it was, and other models are compared with it without asking it again. JSON lines: a head, then the
// answers in the order in which they came. Used by one thread.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "tools/cli/evaluation.h"
#include "tools/cli/line_appender.h"
#include "tools/cli/task_file.h"

namespace terrace {

// What decides the answers: files of different heads have nothing to do with one another.
struct JournalHead {
  std::string model = {};                           // as it was named
  std::string model_digest = {}, text_digest = {};  // "" where nobody tells them
  std::string runtime = {}, build = {};             // of ModelFacts; "" of a model that a router serves
  std::string scored_rows_digest = {};              // TaskSetDigest of the rows with a checker
  uint32_t max_tokens = 0;

  friend bool operator==(const JournalHead&, const JournalHead&) = default;
};

struct RecordedAnswers {
  JournalHead head = {};
  std::map<size_t, RowOutcome> outcomes = {};  // by place among the rows with a checker
  size_t bytes = 0;                            // of the text, up to the end of its last whole line
};

// A line without an end was being written and is left out. DATA_LOSS "line 3: ..." for another that is none,
// or that is not of `scored_rows`.
StatusOr<RecordedAnswers> ParseAnswers(std::string_view text, const std::vector<TaskRow>& scored_rows);
// The same of a file; NOT_FOUND. FAILED_PRECONDITION when its answers are to other rows, or of another
// length.
StatusOr<RecordedAnswers> ReadAnswers(const std::string& path, const std::vector<TaskRow>& scored_rows,
                                      uint32_t max_tokens);

class AnswerJournal {
 public:
  // Goes on with what is at `path`, which may be nothing yet. FAILED_PRECONDITION when that has another head
  // (but for the model's name, where there is a digest), or is no such file; errors of ParseAnswers
  // and LineAppender::Open: no two runs write to one.
  static StatusOr<AnswerJournal> Open(const std::string& path, const JournalHead& head,
                                      const std::vector<TaskRow>& scored_rows);

  // That were there when it was opened.
  const std::map<size_t, RowOutcome>& known() const { return known_; }
  // UNAVAILABLE when it cannot be written.
  Status Add(size_t place, const RowOutcome& outcome);

 private:
  AnswerJournal(LineAppender lines, std::map<size_t, RowOutcome> known)
      : lines_(std::move(lines)), known_(std::move(known)) {}

  LineAppender lines_;
  std::map<size_t, RowOutcome> known_;
};

}  // namespace terrace
