// Whole lines behind what a file has, each written before the next thing is done: what a run that is ended
// leaves is all that it did. The file is locked while this lives, so that no two runs write to one. Used by
// one thread.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "base/descriptor.h"
#include "base/status.h"

namespace terrace {

class LineAppender {
 public:
  // Makes the file where there is none, locks it and reads it. UNAVAILABLE: it cannot be read or written, or
  // another process has locked it.
  static StatusOr<LineAppender> Open(const std::string& path);

  // What the file had.
  const std::string& text() const { return text_; }
  // Cuts off what is behind the first `bytes` of the text, before anything is appended: a line that was being
  // written. Never all of it. UNAVAILABLE.
  Status Keep(size_t bytes);

  // The line, or its rest where the file ends with its beginning. UNAVAILABLE when it cannot be written, and
  // ever after.
  Status Append(std::string line);

 private:
  LineAppender(std::string path, Descriptor file) : path_(std::move(path)), file_(std::move(file)) {}

  std::string path_;
  Descriptor file_;
  std::string text_;
  int error_ = 0;  // of the write that failed
};

}  // namespace terrace
