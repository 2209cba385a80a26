// The residual stream of all calibration tokens between two layers, [tokens, width] in f32. It is in a file,
// so that no text is too long for the memory; the file has no name, and goes with the object or the process.
// Rows are read and written some at a time. One thread at a time.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <utility>

#include "base/status.h"

namespace terrace {

// Of which rows are in memory at once, wherever they are read one after the other. Sums over tokens are cut
// here, so other numbers would come to other bits.
inline constexpr size_t kPieceTokens = 512;

class HiddenStates {
 public:
  // Zeros. The file takes its space in `folder` at once where the file system can do that: RESOURCE_EXHAUSTED
  // names the folder and the bytes when the disk is full, UNAVAILABLE is for the rest.
  static StatusOr<HiddenStates> Create(const std::string& folder, size_t tokens, size_t width);
  ~HiddenStates();
  HiddenStates(HiddenStates&& other) noexcept { *this = std::move(other); }
  HiddenStates& operator=(HiddenStates&& other) noexcept;

  StatusOr<HiddenStates> MakeAnother() const { return Create(folder_, tokens_, width_); }  // of zeros

  size_t tokens() const { return tokens_; }
  size_t width() const { return width_; }

  // Rows from `first` on, as many as there are in `rows`. The errors of Create.
  Status Read(size_t first, std::span<float> rows) const;
  Status Write(size_t first, std::span<const float> rows);

  // Calls use(first, rows) for all rows in order, kPieceTokens at a time. Its error ends that.
  Status EachPiece(const std::function<Status(size_t first, std::span<const float> rows)>& use) const;

 private:
  HiddenStates(std::string folder, size_t tokens, size_t width, int fd)
      : folder_(std::move(folder)), tokens_(tokens), width_(width), fd_(fd) {}
  Status Failed(int error, const char* doing) const;

  std::string folder_;
  size_t tokens_ = 0, width_ = 0;
  int fd_ = -1;
};

}  // namespace terrace
