// A file that lists a tier's workers: host:port a line, '#' begins a comment. Whoever writes it puts a new
// one in its place (rename), so that nobody sees half of it. One thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_stamp.h"
#include "base/host_port.h"
#include "base/status.h"

namespace terrace {

// As people write it, with a port that can be connected to.
StatusOr<HostPort> ParseWorkerAddress(std::string_view text);

class AddressFile {
 public:
  explicit AddressFile(std::string path) : path_(std::move(path)) {}

  // Looks whether the file has changed since the last time (its time, size or inode), and reads it then. An
  // error, with the path and the line, says why `addresses` are older than the file: it cannot be read, is
  // malformed, or lists nobody.
  Status Refresh();
  const std::vector<std::string>& addresses() const { return addresses_; }

 private:
  StatusOr<std::optional<std::string>> ReadIfChanged();

  const std::string path_;
  std::optional<FileStamp> seen_;
  Status error_;  // of what was seen
  std::vector<std::string> addresses_;
};

}  // namespace terrace
