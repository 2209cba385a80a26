// Whether an answer to a task is right: the checkers of models/eval/README.md. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace terrace {

enum class Checker : uint8_t {
  kExact,        // equal to `expected`
  kLabel,        // the same
  kJsonEqual,    // both parse as JSON and are equal: numbers by value, key order ignored
  kFinalNumber,  // the number after the last "Answer:" is equal
  kRefusal,      // where `expected` is the refusal, begins like it; else equal
  kNone,         // not scored
};

// INVALID_ARGUMENT for an unknown name.
StatusOr<Checker> ParseChecker(std::string_view name);

// White space at both ends of `answer` does not count. `checker` is not kNone.
bool IsRight(Checker checker, std::string_view answer, std::string_view expected);

// What an answer is, right or wrong.
bool IsJson(std::string_view answer);
bool IsRefusal(std::string_view answer);
// Whether a right answer to a row with the checker kRefusal refuses.
bool ExpectsRefusal(std::string_view expected);

}  // namespace terrace
