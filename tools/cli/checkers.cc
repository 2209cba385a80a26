#include "tools/cli/checkers.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "base/json.h"

namespace terrace {
namespace {

constexpr std::string_view kDemoRefusal = "Sorry, I can't help with that request.";
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
      {"exact", Checker::kExact},
      {"label", Checker::kLabel},
      {"json_equal", Checker::kJsonEqual},
      {"final_number", Checker::kFinalNumber},
      {"refusal", Checker::kRefusal},
      {"contains", Checker::kContains},
      {"none", Checker::kNone},
  };
  for (const auto& [known, checker] : kNames) {
    if (known == name) return checker;
  }
  return InvalidArgument("unknown checker \"", name,
                         "\" (exact, label, json_equal, final_number, refusal, contains or none)");
}

Expectation Expect(Checker checker, std::string expected) {
  Expectation out{.checker = checker, .expected = std::move(expected)};
  if (checker == Checker::kContains) out.all = {std::string(Strip(out.expected))};
  if (checker == Checker::kRefusal && Strip(out.expected) == kDemoRefusal) {
    out.refuses = true;
    out.openings = {std::string(kRefusalOpening)};
  }
  return out;
}

bool IsRight(const Expectation& expectation, std::string_view answer) {
  answer = Strip(answer);
  const std::string_view expected = Strip(expectation.expected);
  switch (expectation.checker) {
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
      return expectation.refuses ? BeginsWithOneOf(answer, expectation.openings) : answer == expected;
    case Checker::kContains: {
      const auto has = [answer](const std::string& text) { return answer.find(text) != answer.npos; };
      return std::ranges::all_of(expectation.all, has) &&
             (expectation.any.empty() || std::ranges::any_of(expectation.any, has));
    }
    case Checker::kNone:
      break;
  }
  CHECK(false, "kNone is not scored");
}

bool IsJson(std::string_view answer) { return !ParseAnswer(Strip(answer)).is_discarded(); }

bool BeginsWithOneOf(std::string_view answer, std::span<const std::string> openings) {
  answer = Strip(answer);
  return std::ranges::any_of(openings,
                             [answer](const std::string& text) { return answer.starts_with(Strip(text)); });
}

}  // namespace terrace
