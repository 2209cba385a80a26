// What a teacher says of each position of training rows, in a file: its k likeliest tokens with their
// log-probabilities at one temperature, and the logarithm of what is left of the probability. Made once, read
// by any number of runs that need no teacher in memory then.
//
// The file is a line of JSON that says what it is of, padded with spaces to a multiple of 8 bytes; then of
// each row, one after the other, int32 tokens [positions, k], f32 log-probabilities [positions, k], f32 of
// the rest [positions], and the low 8 bytes of the hash of these. Little-endian.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/json_fwd.h"
#include "base/mapped_file.h"
#include "base/status.h"
#include "text/tokenizer.h"
#include "tools/distill/training_rows.h"
#include "worker/formats/staged_path.h"

namespace terrace {

struct TeacherCacheInfo {
  std::string teacher_digest = {}, text_digest = {};  // of ModelFiles::digest; of the tokenizer
  std::string rows_digest = {};                       // RowsDigest
  double temperature = 1;
  uint32_t top_k = 0;
  uint32_t vocab_size = 0;

  Json ToJson() const;
};

struct TeacherRow {
  std::vector<TokenId> tokens = {};   // [positions, k], the likeliest first
  std::vector<float> log_probs = {};  // [positions, k]
  std::vector<float> log_rest = {};   // [positions]; -infinity where k is the whole vocabulary
};

// Writes a cache row by row; the file appears when all of it is written. One thread at a time.
class TeacherCacheWriter {
 public:
  // INVALID_ARGUMENT when something is at `path`, and the errors of OutputFile.
  static StatusOr<TeacherCacheWriter> Create(const std::string& path, const TeacherCacheInfo& info,
                                             std::span<const TrainingRow> rows);
  Status Append(const TeacherRow& row);  // those of the next row
  Status Finish();

 private:
  TeacherCacheWriter(StagedPath staged, OutputFile file)
      : staged_(std::move(staged)), file_(std::move(file)) {}
  StagedPath staged_;
  OutputFile file_;
};

// An opened cache. Immutable; any thread may read.
class TeacherCache {
 public:
  // NOT_FOUND when it is absent; INVALID_ARGUMENT, naming what differs, when it is not of `info`; DATA_LOSS
  // when it is no cache, or not as long as `rows` make it.
  static StatusOr<std::unique_ptr<TeacherCache>> Open(const std::string& path, const TeacherCacheInfo& info,
                                                      std::span<const TrainingRow> rows);

  // What it has of row `row`, whose checksum is looked at: DATA_LOSS.
  StatusOr<TeacherRow> Row(size_t row) const;

 private:
  TeacherCache(std::unique_ptr<MappedFile> file, uint32_t top_k) : file_(std::move(file)), top_k_(top_k) {}
  const std::unique_ptr<MappedFile> file_;
  const uint32_t top_k_;
  std::vector<uint64_t> offsets_;  // of each row, and of the end
};

}  // namespace terrace
