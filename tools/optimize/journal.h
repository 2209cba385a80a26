// The finished parts of a long job, kept in a folder beside its output, so that a process that is killed can
// be followed by one that goes on: OUTPUT.work. A part is there whole or not at all, with a checksum. The
// folder is locked while this object lives. One thread at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "base/mapped_file.h"
#include "base/status.h"

namespace terrace {

class Journal {
 public:
  // Makes the folder, or goes on with one that a run of the same job left. `job` is all that the output
  // follows from, best a JSON object: of another job's folder the error tells what differs. INVALID_ARGUMENT
  // for that, and when `output` is empty or there already, UNAVAILABLE while another process works there, and
  // when it cannot be written.
  static StatusOr<Journal> Open(const std::string& output, const std::string& job);
  ~Journal();
  Journal(Journal&& other) noexcept;
  Journal& operator=(Journal&&) = delete;

  const std::string& folder() const { return folder_; }

  // A part of an earlier run or of this one; borrows the file, which lives as long as the result.
  class Part {
   public:
    std::span<const std::byte> bytes() const { return bytes_; }

   private:
    friend class Journal;
    std::unique_ptr<MappedFile> file_;
    std::span<const std::byte> bytes_;
  };
  // NOT_FOUND when there is none, or not as it was saved; UNAVAILABLE when it cannot be read.
  StatusOr<Part> Find(const std::string& name) const;
  // UNAVAILABLE, with the path of the output and the cause.
  Status Save(const std::string& name, std::span<const std::byte> bytes) const;

  // Removes the folder with all parts: the job is done. What is opened stays readable.
  Status Remove();

 private:
  Journal(std::string folder, int lock) : folder_(std::move(folder)), lock_(lock) {}
  std::string folder_;
  int lock_;  // the folder; -1: none
};

}  // namespace terrace
