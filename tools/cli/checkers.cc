#include "tools/cli/checkers.h"

#include <charconv>
#include <optional>
#include <utility>

#include "base/json.h"

namespace terrace {
namespace {

constexpr std::string_view kRefusalText = "Sorry, I can't help with that request.";
constexpr std::string_view kRefusalStart = "Sorry, I can't help";
constexpr std::string_view kAnswerMark = "Answer:";
constexpr std::string_view kWhiteSpace = " \t\r\n\v\f";

std::string_view Strip(std::string_view text) {
  const size_t begin = text.find_first_not_of(kWhiteSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kWhiteSpace) - begin + 1);
}

// The number that follows the last "Answer:", white space between them allowed.
std::optional<double> FinalNumber(std::string_view text) {
  const size_t mark = text.rfind(kAnswerMark);
  if (mark == std::string_view::npos) return std::nullopt;
  const std::string_view rest = Strip(text.substr(mark + kAnswerMark.size()));
  double number = 0;
  const auto [end, error] =
      std::from_chars(rest.data(), rest.data() + rest.size(), number, std::chars_format::fixed);
  if (error != std::errc()) return std::nullopt;
  return number;
}

// A key that occurs twice has its last value, as in most JSON readers and in the reference figures. Answers
// are short: max_tokens bounds them.
Json ParseAnswer(std::string_view text) { return Json::parse(text, nullptr, /*allow_exceptions=*/false); }

bool IsJsonEqual(std::string_view answer, std::string_view expected) {
  const Json got = ParseAnswer(answer), want = ParseAnswer(expected);
  return !got.is_discarded() && !want.is_discarded() && got == want;
}

}  // namespace

StatusOr<Checker> ParseChecker(std::string_view name) {
  constexpr std::pair<std::string_view, Checker> kNames[] = {
      {"exact", Checker::kExact},          {"label", Checker::kLabel},
      {"json_equal", Checker::kJsonEqual}, {"final_number", Checker::kFinalNumber},
      {"refusal", Checker::kRefusal},      {"none", Checker::kNone},
  };
  for (const auto& [known, checker] : kNames) {
    if (known == name) return checker;
  }
  return InvalidArgument("unknown checker \"", name,
                         "\" (exact, label, json_equal, final_number, refusal or none)");
}

bool IsRight(Checker checker, std::string_view answer, std::string_view expected) {
  answer = Strip(answer);
  expected = Strip(expected);
  switch (checker) {
    case Checker::kExact:
    case Checker::kLabel:
      return answer == expected;
    case Checker::kJsonEqual:
      return IsJsonEqual(answer, expected);
    case Checker::kFinalNumber: {
      const std::optional<double> want = FinalNumber(expected);
      return want.has_value() && FinalNumber(answer) == want;
    }
    case Checker::kRefusal:
      return ExpectsRefusal(expected) ? IsRefusal(answer) : answer == expected;
    case Checker::kNone:
      break;
  }
  CHECK(false, "kNone is not scored");
}

bool IsJson(std::string_view answer) { return !ParseAnswer(Strip(answer)).is_discarded(); }
bool IsRefusal(std::string_view answer) { return Strip(answer).starts_with(kRefusalStart); }
bool ExpectsRefusal(std::string_view expected) { return Strip(expected) == kRefusalText; }

}  // namespace terrace
