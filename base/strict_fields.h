// The members of one JSON object that a tool of ours wrote, read strictly: each must be there and of its
// kind, and there may be no other. The first error is kept; what is read behind it is empty. Borrows the
// object. Used by one thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace terrace {

class StrictFields {
 public:
  // `place` begins the messages: "steps[1]"; "" at the top.
  StrictFields(const Json& object, std::string place);

  std::string Text(const char* key);
  double Number(const char* key);
  uint64_t Count(const char* key);       // a whole number, 0 or more
  uint32_t SmallCount(const char* key);  // below 2^32
  bool Flag(const char* key);
  const Json& Object(const char* key);
  const Json& List(const char* key);

  // INVALID_ARGUMENT: the first error, or a member that was not read.
  Status Finish() const;

 private:
  const Json& Take(const char* key);  // null where it is absent
  void Fail(std::string_view key, std::string_view what);

  const Json& object_;
  const std::string place_;
  std::vector<std::string_view> taken_;
  Status error_;
};

}  // namespace terrace
