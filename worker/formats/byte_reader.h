// Reads little-endian values from bytes that may end anywhere, and makes the errors of malformed files.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

#include "base/status.h"

namespace terrace {

static_assert(std::endian::native == std::endian::little,
              "model files are little-endian and are mapped as they are");

// DATA_LOSS with a reason: what every reader in this folder answers to bytes it cannot accept.
template <typename... Args>
Status Malformed(std::string_view reason, const Args&... args) {
  return WithReason(DataLoss(args...), reason);
}

// The same error as DATA_LOSS, when its cause lies in a file rather than in a request.
inline Status AsDataLoss(const Status& status) {
  if (status.code() != StatusCode::kInvalidArgument && status.code() != StatusCode::kResourceExhausted)
    return status;
  return Malformed(Reason(status), Message(status));
}

// A position in borrowed bytes. Errors are DATA_LOSS, reason truncated, with the byte offset; after one the
// position is unchanged. One thread at a time.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }

  StatusOr<std::span<const std::byte>> Read(uint64_t count) {
    if (count > remaining())
      return Malformed("truncated", count, " bytes wanted at byte ", offset_, ", the file ends at byte ",
                       bytes_.size());
    const auto read = bytes_.subspan(offset_, count);
    offset_ += count;
    return read;
  }

  template <typename T>
  requires std::is_arithmetic_v<T> StatusOr<T> Read() {
    ASSIGN_OR_RETURN(const auto raw, Read(sizeof(T)));
    return Load<T>(raw);
  }

  // The first bytes of `raw` as a T; there are enough of them.
  template <typename T>
  static T Load(std::span<const std::byte> raw) {
    T value;
    std::memcpy(&value, raw.data(), sizeof(T));
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  uint64_t offset_ = 0;
};

// Printable ASCII, so that a name can stand in messages and logs as it is.
inline bool IsPlainName(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c <= '~'; });
}

inline std::string_view AsText(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace terrace
