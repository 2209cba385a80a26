// Which of cuBLASLt's algorithms was the fastest for a shape, kept in a file from one process to the next. An
// algorithm is what cublasLtMatmulAlgo_t holds. It means something to one version of the library on one kind
// of device: the file's name says which device, the file which driver and library, and of others it is
// ignored. One thread at a time; several processes may share a folder. Knows nothing of CUDA.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <string>

#include "base/status.h"

namespace terrace {

struct GemmShape {
  uint32_t tokens = 0, rows = 0, columns = 0;
  bool is_e4m3 = false, out_is_f32 = false, adds_to_out = false;
  friend auto operator<=>(const GemmShape&, const GemmShape&) = default;
};

using GemmAlgorithm = std::array<uint64_t, 8>;

// What algorithms are for.
struct GemmMachine {
  std::string device;                // what devices of which are alike
  uint64_t driver = 0, library = 0;  // versions
};

class GemmChoices {
 public:
  // A file holds at most so many.
  static constexpr size_t kMost = 10'000;

  // A `folder` of "": nothing is kept.
  GemmChoices(std::string folder, GemmMachine machine);

  // Takes what the file has; OK where there is none yet. An error says why nothing of it is used: NOT_FOUND
  // without the folder, DATA_LOSS for what is not as it was written, FAILED_PRECONDITION, reason stale, for
  // another driver's or library's, errors of ReadFile.
  Status Read();
  // Null: not known.
  const GemmAlgorithm* Find(const GemmShape& shape) const;
  // Replaces the file, as a whole, by what is known here and what other processes have put there meanwhile.
  // Errors of ReplaceFile (worker/formats/staged_path.h); the choice is known here all the same.
  Status Keep(const GemmShape& shape, const GemmAlgorithm& algorithm);

  const std::string& path() const { return path_; }  // of the file; "" where nothing is kept

 private:
  using Choices = std::map<GemmShape, GemmAlgorithm>;
  StatusOr<Choices> ReadChoices() const;

  const std::string folder_;
  const GemmMachine machine_;
  const std::string path_;
  Choices choices_;
};

}  // namespace terrace
