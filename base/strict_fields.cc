#include "base/strict_fields.h"

#include <algorithm>
#include <utility>

namespace terrace {
namespace {

const Json& NullJson() {
  static const Json* const null = new Json();
  return *null;
}

}  // namespace

StrictFields::StrictFields(const Json& object, std::string place)
    : object_(object), place_(std::move(place)) {
  if (!object_.is_object()) error_ = InvalidArgument(place_, place_.empty() ? "" : ": ", "not a JSON object");
}

std::string StrictFields::Text(const char* key) {
  const Json& value = Take(key);
  if (value.is_string()) return value.get<std::string>();
  Fail(key, "a string");
  return {};
}

double StrictFields::Number(const char* key) {
  const Json& value = Take(key);
  if (value.is_number()) return value.get<double>();
  Fail(key, "a number");
  return 0;
}

uint64_t StrictFields::Count(const char* key) {
  const Json& value = Take(key);
  if (value.is_number_unsigned()) return value.get<uint64_t>();
  Fail(key, "a whole number, 0 or more");
  return 0;
}

uint32_t StrictFields::SmallCount(const char* key) {
  const uint64_t value = Count(key);
  if (value <= UINT32_MAX) return static_cast<uint32_t>(value);
  Fail(key, "below 2^32");
  return 0;
}

bool StrictFields::Flag(const char* key) {
  const Json& value = Take(key);
  if (value.is_boolean()) return value.get<bool>();
  Fail(key, "true or false");
  return false;
}

const Json& StrictFields::Object(const char* key) {
  const Json& value = Take(key);
  if (!value.is_object()) Fail(key, "an object");
  return value;
}

const Json& StrictFields::List(const char* key) {
  const Json& value = Take(key);
  if (value.is_array()) return value;
  Fail(key, "a list");
  return NullJson();  // of no elements
}

Status StrictFields::Finish() const {
  RETURN_IF_ERROR(error_);
  for (auto member = object_.begin(); member != object_.end(); ++member) {
    if (std::find(taken_.begin(), taken_.end(), member.key()) == taken_.end())
      return InvalidArgument(place_, place_.empty() ? "" : ": ", "unknown member \"", member.key(), "\"");
  }
  return {};
}

const Json& StrictFields::Take(const char* key) {
  taken_.push_back(key);
  const auto found = object_.find(key);
  return found == object_.end() ? NullJson() : *found;
}

void StrictFields::Fail(std::string_view key, std::string_view what) {
  if (error_.ok())
    error_ = InvalidArgument(place_, place_.empty() ? "" : ": ", "\"", key, "\" must be there and be ", what);
}

}  // namespace terrace
