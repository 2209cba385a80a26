// Typed access to JSON that a file or a peer sent: every miss is DATA_LOSS naming the key
// ("model.merges[17]"). Values only; a JsonReader borrows the Json it reads.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/status.h"

namespace terrace {

// Limits of a tokenizer: 256 MiB, depth 64. DATA_LOSS with the reasons of ParseJson.
StatusOr<Json> ParseJsonData(std::string_view text);
// The same for a file, named in the message. NOT_FOUND when absent.
StatusOr<Json> ReadJsonFile(const std::string& path);

class JsonReader {
 public:
  // `key` is the path from the root, for messages: "" for the root.
  JsonReader(const Json& value, std::string key) : value_(value), key_(std::move(key)) {}

  const Json& value() const { return value_; }
  const std::string& key() const { return key_; }
  size_t size() const { return value_.size(); }

  // Whether a member is there and not null.
  bool Has(std::string_view name) const { return Find(name) != nullptr && !Find(name)->is_null(); }

  // A member by name or an element by index. Reason type_mismatch when it is absent or of another type.
  template <typename Name>
  StatusOr<JsonReader> Object(Name name) const {
    return Child(name, "an object", &Json::is_object);
  }
  template <typename Name>
  StatusOr<JsonReader> Array(Name name) const {
    return Child(name, "an array", &Json::is_array);
  }
  template <typename Name>
  StatusOr<std::string> Text(Name name) const {
    const Json* value = Find(name);
    if (value == nullptr || !value->is_string()) return Mismatch(name, "a string");
    return value->template get<std::string>();
  }
  template <typename Name>
  StatusOr<bool> Bool(Name name) const {
    const Json* value = Find(name);
    if (value == nullptr || !value->is_boolean()) return Mismatch(name, "true or false");
    return value->template get<bool>();
  }
  // An integer in [low, high], with `reason` when it is outside.
  template <typename Name>
  StatusOr<int64_t> Integer(Name name, int64_t low, int64_t high, std::string_view reason) const {
    const Json* value = Find(name);
    if (value == nullptr || !value->is_number_integer()) return Mismatch(name, "an integer");
    const bool is_huge = value->is_number_unsigned() && value->template get<uint64_t>() > uint64_t{INT64_MAX};
    const int64_t number = is_huge ? INT64_MAX : value->template get<int64_t>();
    if (is_huge || number < low || number > high) return OutOfRange(KeyOf(name), number, low, high, reason);
    return number;
  }

  std::string KeyOf(std::string_view name) const {
    return key_.empty() ? std::string(name) : Concat(key_, ".", name);
  }
  std::string KeyOf(size_t index) const { return Concat(key_, "[", index, "]"); }

 private:
  const Json* Find(std::string_view name) const;
  const Json* Find(size_t index) const;

  template <typename Name>
  StatusOr<JsonReader> Child(Name name, std::string_view what, bool (Json::*is_type)() const noexcept) const {
    const Json* value = Find(name);
    if (value == nullptr || !(value->*is_type)()) return Mismatch(name, what);
    return JsonReader(*value, KeyOf(name));
  }
  template <typename Name>
  Status Mismatch(Name name, std::string_view what) const {
    return WithReason(DataLoss(KeyOf(name), ": not ", what), "type_mismatch");
  }
  static Status OutOfRange(const std::string& key, int64_t number, int64_t low, int64_t high,
                           std::string_view reason);

  const Json& value_;
  std::string key_;
};

}  // namespace terrace
