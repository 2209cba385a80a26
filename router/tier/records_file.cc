#include "router/tier/records_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/descriptor.h"

namespace terrace {
namespace {

constexpr size_t kMostBytes = size_t{256} << 20;  // that ReadFile, and with it `terrace calibrate`, takes

std::string Described(const RecordedTier& tier) {
  return Concat(tier.name, " (model ", tier.model_digest, ", text ", tier.text_digest, ", ", tier.parameters,
                " parameters)");
}

}  // namespace

Status RecordsFile::Failed(int error) const { return Unavailable(path_, ": ", std::strerror(error)); }

Status RecordsFile::CheckTiers(const std::vector<RecordedTier>& tiers) const {
  if (tiers_ == tiers) return {};
  if (tiers_.size() != tiers.size())
    return FailedPrecondition(path_, ": has records of ", tiers_.size(), " tiers, not of ", tiers.size());
  const auto [has, asked] = std::ranges::mismatch(tiers_, tiers);
  return FailedPrecondition(path_, ": has records of ", Described(*has), ", not of ", Described(*asked));
}

// Of what is open: another file may be at the path by now.
StatusOr<std::string> RecordsFile::Read(int file, size_t bytes) const {
  if (bytes > kMostBytes) return FailedPrecondition(path_, ": has ", bytes, " bytes, limit ", kMostBytes);
  std::string text(bytes, '\0');
  size_t got = 0;
  while (got < bytes) {
    const ssize_t count = ::pread(file, text.data() + got, bytes - got, static_cast<off_t>(got));
    if (count < 0 && errno != EINTR) return Failed(errno);
    if (count == 0) break;
    if (count > 0) got += static_cast<size_t>(count);
  }
  text.resize(got);
  return text;
}

// `head` is what a new file begins with.
Status RecordsFile::Look(int file, size_t bytes, const std::string& head) {
  ASSIGN_OR_RETURN(const std::string text, Read(file, bytes));
  bytes_ = text.rfind('\n') + 1;  // 0 without an end of a line
  tiers_.clear();
  rows_ = 0;
  if (bytes_ == 0)
    return head.starts_with(text) ? Status() : FailedPrecondition(path_, ": is no file of records");
  StatusOr<std::vector<RecordedTier>> tiers =
      ParseRecordsHead(std::string_view(text).substr(0, text.find('\n')));
  if (!tiers.ok()) return FailedPrecondition(path_, ": is no file of records: ", Message(tiers.status()));
  tiers_ = *std::move(tiers);
  rows_ = static_cast<size_t>(std::ranges::count(text, '\n')) - 1;
  return {};
}

// What could not be written whole is cut off; should that fail too, the next row's Look does it.
Status RecordsFile::Write(int file, const std::string& text) const {
  struct stat before = {};
  if (::fstat(file, &before) != 0) return Failed(errno);
  size_t written = 0;
  int error = 0;
  while (written < text.size() && error == 0) {
    const ssize_t count = ::write(file, text.data() + written, text.size() - written);
    if (count > 0) written += static_cast<size_t>(count);
    if (count == 0) error = EIO;
    if (count < 0 && errno != EINTR) error = errno;
  }
  if (error == 0) return {};
  return Failed(::ftruncate(file, before.st_size) == 0 ? error : errno);
}

Status RecordsFile::Append(const std::vector<RecordedTier>& tiers, Record record) {
  for (const RecordedTier& tier : tiers) {
    if (tier.parameters == 0)
      return FailedPrecondition("tier ", tier.name, " does not say how many parameters its model has");
  }
  const Descriptor file(::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0600));
  if (!file.is_open()) return Failed(errno);
  if (::flock(file.number(), LOCK_EX | LOCK_NB) != 0)
    return errno == EWOULDBLOCK ? Unavailable(path_, ": another one writes it now") : Failed(errno);
  struct stat info = {};
  if (::fstat(file.number(), &info) != 0) return Failed(errno);
  if (!S_ISREG(info.st_mode)) return FailedPrecondition(path_, ": is not a regular file");
  const auto size = static_cast<size_t>(info.st_size);
  const std::string head = RecordsHead(tiers);
  if (StampOf(info) != seen_) {
    seen_ = {};  // until all of it was looked at
    RETURN_IF_ERROR(Look(file.number(), size, head));
  }
  if (!tiers_.empty()) RETURN_IF_ERROR(CheckTiers(tiers));
  if (rows_ >= max_rows_) return ResourceExhausted(path_, ": has ", rows_, " records, limit ", max_rows_);
  record.id = Concat(rows_ + 1);
  if (bytes_ < size && ::ftruncate(file.number(), static_cast<off_t>(bytes_)) != 0) return Failed(errno);
  const std::string text = (tiers_.empty() ? head : "") + RecordLine(record);
  RETURN_IF_ERROR(Write(file.number(), text));
  tiers_ = tiers;
  bytes_ += text.size();
  ++rows_;
  seen_ = ::fstat(file.number(), &info) == 0 ? StampOf(info) : FileStamp();
  return {};
}

}  // namespace terrace
