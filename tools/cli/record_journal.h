// The answers that a run of `terrace calibrate --tiers` has had so far, beside the records file that they
// become: a run that was ended goes on where it was. JSON lines: a head; of each tier a line that says what
// it is, then its answers in the order in which they came. Used by one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "router/tier/records.h"
#include "tools/cli/line_appender.h"

namespace terrace {

// What decides the answers, whoever gives them.
struct RecordJournalHead {
  std::string scored_rows_digest = {};  // TaskSetDigest of the rows with a checker
  uint32_t max_tokens = 0;

  friend bool operator==(const RecordJournalHead&, const RecordJournalHead&) = default;
};

struct JournaledTier {
  RecordedTier tier = {};
  std::string runtime = {}, build = {};  // of ModelFacts; "" of a served tier
};

struct JournaledAnswer {
  RecordedAnswer answer = {};
  std::vector<int32_t> ids = {};  // its tokens: the next tier's answer is compared with them
};

class RecordJournal {
 public:
  using Answers = std::map<size_t, JournaledAnswer>;  // by row

  // Goes on with what is at `path`, which may be nothing yet, about so many rows. FAILED_PRECONDITION when
  // that has another head, DATA_LOSS "line 3: ..." for a whole line that is none of a journal (a last one
  // without an end was being written, and is written again); errors of LineAppender::Open.
  static StatusOr<RecordJournal> Open(const std::string& path, const RecordJournalHead& head, size_t rows);

  // The answers that are known of the tier, the one after that of the call before. FAILED_PRECONDITION when
  // they are of another model, or were computed in another way or by another build. The result is valid until
  // the next call.
  StatusOr<const Answers*> Begin(const JournaledTier& tier);
  // Of the tier that was begun last. UNAVAILABLE when it cannot be written.
  Status Add(size_t row, JournaledAnswer answer);

 private:
  struct Known {
    JournaledTier tier = {};
    Answers answers = {};
  };
  struct Parsed {
    std::vector<Known> tiers = {};
    size_t bytes = 0;  // of the text, up to the end of its last whole line
  };
  RecordJournal(std::string path, std::vector<Known> tiers, LineAppender lines)
      : path_(std::move(path)), tiers_(std::move(tiers)), lines_(std::move(lines)) {}
  static StatusOr<Parsed> Parse(std::string_view text, const RecordJournalHead& head, size_t rows);
  static Status ParseLine(std::string_view line, size_t rows, std::vector<Known>& tiers);

  std::string path_;
  std::vector<Known> tiers_;  // in their order
  size_t begun_ = 0;          // of them, by this run
  LineAppender lines_;
};

}  // namespace terrace
