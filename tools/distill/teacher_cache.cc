#include "tools/distill/teacher_cache.h"

#include <cstring>

#include "base/hash.h"
#include "base/json.h"
#include "tools/optimize/differences.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/byte_writer.h"

namespace terrace {
namespace {

constexpr std::string_view kFormat = "terrace-teacher-logits-1";
constexpr uint64_t kAlignment = 8;
constexpr uint64_t kMaxHead = 1 << 16;  // bytes

uint64_t RowBytes(size_t positions, uint32_t top_k) {
  return positions * (uint64_t{top_k} * (sizeof(TokenId) + sizeof(float)) + sizeof(float)) + sizeof(uint64_t);
}

uint64_t Checksum(std::string_view bytes) { return HashBytes(bytes).low; }

template <typename T>
void AppendValues(std::string& out, const std::vector<T>& values) {
  out.append(AsText(std::as_bytes(std::span(values))));
}

template <typename T>
std::vector<T> Read(std::span<const std::byte>& bytes, size_t count) {
  std::vector<T> out(count);
  if (count > 0) std::memcpy(out.data(), bytes.data(), count * sizeof(T));
  bytes = bytes.subspan(count * sizeof(T));
  return out;
}

}  // namespace

Json TeacherCacheInfo::ToJson() const {
  return {{"format", kFormat},       {"teacher", teacher_digest},  {"text", text_digest},
          {"rows", rows_digest},     {"temperature", temperature}, {"top_k", top_k},
          {"vocab_size", vocab_size}};
}

StatusOr<TeacherCacheWriter> TeacherCacheWriter::Create(const std::string& path, const TeacherCacheInfo& info,
                                                        std::span<const TrainingRow> rows) {
  std::string head = ToJsonText(info.ToJson());
  head.resize(RoundUp(head.size() + 1, kAlignment), ' ');
  head.back() = '\n';
  uint64_t bytes = head.size();
  for (const TrainingRow& row : rows) bytes += RowBytes(row.positions(), info.top_k);
  ASSIGN_OR_RETURN(StagedPath staged, StagedPath::Create(path));
  ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(staged.temporary(), bytes));
  RETURN_IF_ERROR(file.Append(std::as_bytes(std::span(head))));
  return TeacherCacheWriter(std::move(staged), std::move(file));
}

Status TeacherCacheWriter::Append(const TeacherRow& row) {
  std::string bytes;
  AppendValues(bytes, row.tokens);
  AppendValues(bytes, row.log_probs);
  AppendValues(bytes, row.log_rest);
  bytes += Packed(Checksum(bytes));
  return file_.Append(std::as_bytes(std::span(bytes)));
}

Status TeacherCacheWriter::Finish() {
  RETURN_IF_ERROR(file_.Close());
  return staged_.Commit();
}

StatusOr<std::unique_ptr<TeacherCache>> TeacherCache::Open(const std::string& path,
                                                           const TeacherCacheInfo& info,
                                                           std::span<const TrainingRow> rows) {
  ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
  const std::string_view bytes = AsText(file->bytes());
  const size_t line = bytes.substr(0, kMaxHead).find('\n');
  StatusOr<Json> head = InvalidArgument("no first line");
  if (line != std::string_view::npos) head = ParseJson(bytes.substr(0, line));
  if (!head.ok() || !head->is_object() || head->value("format", Json()) != Json(kFormat))
    return Malformed("unsupported_format", path, ": is no file of a teacher's log-probabilities");
  if (const std::string differs = Differences(*head, info.ToJson()); !differs.empty())
    return InvalidArgument(path, ": is of another teacher, other text or other settings: ", differs,
                           "; remove it to have it made anew, or name another file");

  std::unique_ptr<TeacherCache> cache(new TeacherCache(std::move(file), info.top_k));
  uint64_t offset = line + 1;
  for (const TrainingRow& row : rows) {
    cache->offsets_.push_back(offset);
    offset += RowBytes(row.positions(), info.top_k);
  }
  cache->offsets_.push_back(offset);
  if (offset != bytes.size())
    return Malformed("truncated", path, ": has ", bytes.size(), " bytes, its rows take ", offset);
  return cache;
}

StatusOr<TeacherRow> TeacherCache::Row(size_t row) const {
  CHECK(row + 1 < offsets_.size(), "row ", row, " of ", offsets_.size() - 1);
  std::span<const std::byte> bytes = file_->bytes().subspan(offsets_[row], offsets_[row + 1] - offsets_[row]);
  const auto checksum = bytes.last(sizeof(uint64_t));
  bytes = bytes.first(bytes.size() - checksum.size());
  if (ByteReader::Load<uint64_t>(checksum) != Checksum(AsText(bytes)))
    return Malformed("bad_checksum", file_->path(), ": row ", row, " is not as it was written");
  const size_t positions = bytes.size() / (top_k_ * (sizeof(TokenId) + sizeof(float)) + sizeof(float));
  TeacherRow out;
  out.tokens = Read<TokenId>(bytes, positions * top_k_);
  out.log_probs = Read<float>(bytes, positions * top_k_);
  out.log_rest = Read<float>(bytes, positions);
  return out;
}

}  // namespace terrace
