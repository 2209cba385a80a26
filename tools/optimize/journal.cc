#include "tools/optimize/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/hash.h"
#include "base/json.h"
#include "tools/optimize/differences.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/staged_path.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kJob = "job", kFolderEnd = ".work";
constexpr size_t kChecksumBytes = 32;  // hexadecimal digits behind the bytes

std::string Checksum(std::span<const std::byte> bytes) { return HashBytes(AsText(bytes)).Hex(); }

Status OtherJob(const std::string& folder, std::string_view there, const std::string& here) {
  const auto of_folder = ParseJson(there), of_run = ParseJson(here);
  const bool is_json = of_folder.ok() && of_run.ok();
  return InvalidArgument(folder, ": is of another job",
                         is_json ? Concat("; what differs: ", Differences(*of_folder, *of_run)) : "",
                         "; repeat it as it was, or remove the folder");
}

}  // namespace

StatusOr<Journal> Journal::Open(const std::string& output, const std::string& job) {
  std::string plain = output;
  while (plain.size() > 1 && plain.ends_with('/')) plain.pop_back();
  if (plain.empty()) return InvalidArgument("the path of the output is empty");
  std::error_code error;
  const std::string folder = plain + std::string(kFolderEnd);
  if (fs::exists(fs::symlink_status(plain, error)))
    return InvalidArgument(
        plain, ": is there already, and nothing is overwritten",
        fs::exists(folder, error) ? Concat("; ", folder, " is left of a job and may be removed") : "");
  fs::create_directory(folder, error);
  if (error) return Unavailable(plain, ": cannot be written: ", folder, ": ", error.message());
  const int lock = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock < 0) return Unavailable(folder, ": cannot open: ", std::strerror(errno));
  Journal journal(folder, lock);
  if (::flock(lock, LOCK_EX | LOCK_NB) != 0)
    return errno == EWOULDBLOCK ? Unavailable(folder, ": another process is at work there")
                                : Unavailable(folder, ": cannot lock: ", std::strerror(errno));
  const auto known = journal.Find(std::string(kJob));
  if (known.ok()) {
    if (AsText(known->bytes()) == job) return journal;
    return OtherJob(folder, AsText(known->bytes()), job);
  }
  if (known.status().code() != StatusCode::kNotFound) return known.status();
  if (!fs::is_empty(folder, error) && !fs::exists(folder + "/" + std::string(kJob) + ".partial"))
    return InvalidArgument(folder, ": is there already, and is not of a job that can go on");
  RETURN_IF_ERROR(journal.Save(std::string(kJob), std::as_bytes(std::span(job))));
  return journal;
}

Journal::Journal(Journal&& other) noexcept
    : folder_(std::move(other.folder_)), lock_(std::exchange(other.lock_, -1)) {}

Journal::~Journal() {
  if (lock_ >= 0) ::close(lock_);
}

StatusOr<Journal::Part> Journal::Find(const std::string& name) const {
  Part part;
  ASSIGN_OR_RETURN(part.file_, MappedFile::Open(folder_ + "/" + name));
  const auto all = part.file_->bytes();
  if (all.size() < kChecksumBytes) return NotFound(part.file_->path(), ": is not whole");
  part.bytes_ = all.first(all.size() - kChecksumBytes);
  if (AsText(all.last(kChecksumBytes)) != Checksum(part.bytes_))
    return NotFound(part.file_->path(), ": is not as it was saved");
  return part;
}

Status Journal::Save(const std::string& name, std::span<const std::byte> bytes) const {
  const std::string path = folder_ + "/" + name, temporary = path + ".partial";
  const std::string checksum = Checksum(bytes);
  const Status saved = ReplaceFile(path, temporary, {bytes, std::as_bytes(std::span(checksum))});
  const std::string_view output = std::string_view(folder_).substr(0, folder_.size() - kFolderEnd.size());
  return saved.ok() ? saved : Unavailable(output, ": cannot be written: ", Message(saved));
}

Status Journal::Remove() {
  std::error_code error;
  fs::remove_all(folder_, error);
  return error ? Unavailable(folder_, ": cannot remove: ", error.message()) : Status();
}

}  // namespace terrace
