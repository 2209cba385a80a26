// Whether an answer to a task is right: the checkers of docs/how-to/evaluate.md. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace terrace {

enum class Checker : uint8_t {
  kExact,        // equal to `expected`
  kLabel,        // the same
  kJsonEqual,    // both parse as JSON and are equal: numbers by value, key order ignored
  kFinalNumber,  // the number after the last "Answer:" is equal
  kRefusal,      // where it `refuses`, begins with one of the `openings`; else equal
  kNone,         // not scored
  kContains,     // has all strings of `all` in it and, unless there is none, one of `any`
};

// INVALID_ARGUMENT for an unknown name.
StatusOr<Checker> ParseChecker(std::string_view name);

// What a right answer is.
struct Expectation {
  Checker checker = Checker::kExact;
  std::string expected = {};
  bool refuses = false;                         // of kRefusal, and the next
  std::vector<std::string> openings = {};       // of refusals
  std::vector<std::string> all = {}, any = {};  // of kContains

  friend bool operator==(const Expectation&, const Expectation&) = default;
};

// Of a row that says no more: of kRefusal it refuses where `expected` is the demo family's refusal, which has
// the opening kRefusalOpening; an answer of kContains has `expected` in it.
inline constexpr std::string_view kRefusalOpening = "Sorry, I can't help";
Expectation Expect(Checker checker, std::string expected);

// White space at both ends of `answer` does not count. The checker is not kNone.
bool IsRight(const Expectation& expectation, std::string_view answer);

// What an answer is, right or wrong.
bool IsJson(std::string_view answer);
bool BeginsWithOneOf(std::string_view answer, std::span<const std::string> openings);

}  // namespace terrace
