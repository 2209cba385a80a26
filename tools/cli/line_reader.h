// Lines from stdin while a signal may come. Used by one thread.
#pragma once

#include <optional>
#include <string>

#include "base/shutdown.h"

namespace terrace {

class LineReader {
 public:
  explicit LineReader(int fd) : fd_(fd) {}

  // The next line without its end; nullopt at the end of input or on a signal.
  std::optional<std::string> Next(ShutdownSignal& shutdown);

 private:
  const int fd_;
  std::string buffer_;
  bool is_at_end_ = false;
};

}  // namespace terrace
