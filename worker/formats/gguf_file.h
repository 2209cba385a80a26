// GGUF versions 2 and 3 (little-endian), as ggml's docs/gguf.md describes them. Everything in the file is
// checked here once; what comes out can be used without further checks. Values only, which borrow from the
// file's bytes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "worker/formats/mapped_weights.h"

namespace terrace {

enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

struct GgufValue {
  GgufType type = GgufType::kUint8;  // of the elements, when it is an array; never kArray
  bool is_array = false;
  uint64_t count = 1;                // elements
  uint64_t offset = 0;               // of `bytes` in the file
  std::span<const std::byte> bytes;  // whole elements; strings with their lengths
};

// Typed reading. Errors are DATA_LOSS and name the key and its byte offset; reasons missing_key,
// type_mismatch.
class GgufMetadata {
 public:
  // False when the key is there already.
  bool Add(std::string_view key, const GgufValue& value) { return values_.emplace(key, value).second; }
  bool Has(std::string_view key) const { return values_.contains(key); }
  const std::map<std::string_view, GgufValue>& values() const { return values_; }

  StatusOr<int64_t> Integer(std::string_view key) const;  // any integer type
  StatusOr<double> Float(std::string_view key) const;     // either float type
  StatusOr<bool> Bool(std::string_view key) const;
  StatusOr<std::string_view> String(std::string_view key) const;
  StatusOr<std::vector<std::string_view>> Strings(std::string_view key) const;
  StatusOr<std::vector<int64_t>> Integers(std::string_view key) const;
  StatusOr<std::vector<float>> Floats(std::string_view key) const;  // of type F32
  // An error about the value of `key`, which is there: "key ...: <message> (value at byte N)".
  Status Error(std::string_view reason, std::string_view key, std::string_view message) const;

 private:
  StatusOr<GgufValue> Get(std::string_view key, bool is_array) const;
  std::map<std::string_view, GgufValue> values_;
};

struct GgufContents {
  GgufMetadata metadata;
  std::vector<WeightSource::Entry> entries;  // in file order, stacks split; shapes outermost first
};

// DATA_LOSS with reasons bad_magic, bad_version, truncated, count_limit, bad_key, bad_name, type_mismatch,
// bad_value, bad_alignment, bad_shape, bad_dtype, bad_offset; those of SplitStacks. `file` outlives the
// result.
StatusOr<GgufContents> ParseGguf(std::span<const std::byte> file);

struct GgufFile {
  std::unique_ptr<MappedWeights> weights;
  GgufMetadata metadata;  // borrows from `weights`
};

// Also NOT_FOUND; errors name the file.
StatusOr<GgufFile> OpenGguf(const std::string& path);

}  // namespace terrace
