// A file of records that a router writes while it serves: of one set of tiers, and of whole lines alone. Each
// row looks at the file anew, so it may be moved away (another one begins) and written by several in turn.
// One thread at a time; blocks as a disk does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/file_stamp.h"
#include "base/status.h"
#include "router/tier/records.h"

namespace terrace {

class RecordsFile {
 public:
  // More than `max_rows` are not in it.
  RecordsFile(std::string path, uint32_t max_rows) : path_(std::move(path)), max_rows_(max_rows) {}

  // Puts a row behind those that the file has; its id becomes its number. A file that does not exist is made,
  // for its owner alone (0600). A last line without an end, which a crash left, is cut off before. The row's
  // answers are one a tier and recordable.
  //
  // FAILED_PRECONDITION: the file is of other tiers, or of anything else, or a tier does not say its
  // parameters; RESOURCE_EXHAUSTED: it is full; UNAVAILABLE: it cannot be written now. It is as it was then.
  Status Append(const std::vector<RecordedTier>& tiers, Record record);

 private:
  StatusOr<std::string> Read(int file, size_t bytes) const;
  Status Look(int file, size_t bytes, const std::string& head);
  Status CheckTiers(const std::vector<RecordedTier>& tiers) const;
  Status Write(int file, const std::string& text) const;
  Status Failed(int error) const;

  const std::string path_;
  const uint32_t max_rows_;
  // Of the file as it was seen last.
  FileStamp seen_ = {};
  std::vector<RecordedTier> tiers_ = {};  // empty: it has no line
  size_t rows_ = 0, bytes_ = 0;           // of whole lines
};

}  // namespace terrace
