#include "text/json_fields.h"

#include "base/mapped_file.h"

namespace terrace {
namespace {

constexpr JsonLimits kLimits = {.bytes = size_t{256} << 20, .depth = 64, .nodes = size_t{1} << 24};

}  // namespace

StatusOr<Json> ParseJsonData(std::string_view text) {
  auto value = ParseJson(text, kLimits);
  if (value.ok()) return value;
  return WithReason(DataLoss(Message(value.status())), Reason(value.status()));
}

StatusOr<Json> ReadJsonFile(const std::string& path) {
  const auto text = ReadFile(path, kLimits.bytes);
  if (text.status().code() == StatusCode::kResourceExhausted) {
    return WithReason(DataLoss(Message(text.status())), "json_limit");
  }
  RETURN_IF_ERROR(text.status());
  auto value = ParseJsonData(*text);
  if (!value.ok()) return Annotate(value.status(), path);
  return value;
}

const Json* JsonReader::Find(std::string_view name) const {
  if (!value_.is_object()) return nullptr;
  const auto found = value_.find(std::string(name));
  return found == value_.end() ? nullptr : &*found;
}

const Json* JsonReader::Find(size_t index) const {
  return value_.is_array() && index < value_.size() ? &value_[index] : nullptr;
}

Status JsonReader::OutOfRange(const std::string& key, int64_t number, int64_t low, int64_t high,
                              std::string_view reason) {
  return WithReason(DataLoss(key, ": ", number, " is outside [", low, ", ", high, "]"), reason);
}

}  // namespace terrace
