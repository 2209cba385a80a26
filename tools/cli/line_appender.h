// Whole lines behind what a file has, each written before the next thing is done: what a run that is ended
// leaves is all that it did. Used by one thread.
#pragma once

#include <cstddef>
#include <fstream>
#include <string>
#include <utility>

#include "base/status.h"

namespace terrace {

class LineAppender {
 public:
  // Keeps the first `bytes` of the file, which need not exist, and cuts off the rest: a line that was being
  // written. UNAVAILABLE.
  static StatusOr<LineAppender> Open(const std::string& path, size_t bytes);

  Status Append(const std::string& line);  // UNAVAILABLE when it cannot be written

 private:
  explicit LineAppender(std::string path) : path_(std::move(path)) {}
  Status CannotWrite() const;

  std::string path_;
  std::ofstream file_;
};

}  // namespace terrace
