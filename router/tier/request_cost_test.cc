#include "router/tier/request_cost.h"

#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/request/param.h"
#include "router/tier/testing_plan.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

RequestPtr Ask(std::optional<int64_t> max_tokens, int64_t choices = 1, std::optional<double> max_usd = {},
               std::optional<double> max_seconds = {}) {
  return *Request::Make({.api = ApiKind::kOpenAiChat,
                         .request_id = "r",
                         .max_usd = max_usd,
                         .max_seconds = max_seconds,
                         .input = std::string("words"),
                         .max_tokens = max_tokens,
                         .choices = choices});
}

TEST(ExpectedSeconds, AreThoseToTheFirstTokenAndOfTheOthers) {
  const ClusterView view = ReadyTiers({"nano"}, /*context_length=*/1000);
  const FixedMeter meter(/*tokens_of_all=*/10);
  const AnswerSpeed both = {.first_token_seconds = 2, .seconds_per_token = 0.5},
                    first = {.first_token_seconds = 2}, rest = {.seconds_per_token = 0.5};
  const struct {
    const char* name;
    AnswerSpeed speed;
    std::optional<int64_t> max_tokens;
    int64_t choices;
    double want;
  } cases[] = {{"as many as are wanted", both, 11, 1, 2 + 10 * 0.5},
               {"only the first", both, 1, 1, 2},
               {"as many as are expected", both, {}, 1, 2 + 99 * 0.5},
               {"as many as there is room for", both, 5000, 1, 2 + 989 * 0.5},
               {"several side by side", both, 11, 4, 2 + 10 * 0.5},
               {"of those nothing is known", first, 11, 1, 2},
               {"of the first nothing is known", rest, 11, 1, 10 * 0.5},
               {"nothing is known", {}, 11, 1, 0}};
  for (const auto& c : cases) {
    const RequestPtr request = Ask(c.max_tokens, c.choices);
    const std::vector<AnswerSpeed> speeds = {c.speed};
    EXPECT_DOUBLE_EQ(*ExpectedSeconds({*request, view, meter, speeds}, 0, /*expected_answer_tokens=*/100),
                     c.want)
        << c.name;
  }
  const RequestPtr request = Ask(11);
  EXPECT_EQ(*ExpectedSeconds({*request, view, meter}, 0, 100), 0) << "nothing was asked for";
}

TEST(ExpectedSeconds, OfAPromptAloneAreThoseToItsEnd) {
  const ClusterView view = ReadyTiers({"nano"});
  const FixedMeter meter;
  const std::vector<AnswerSpeed> speeds = {{.first_token_seconds = 2, .seconds_per_token = 0.5}};
  const RequestPtr request =
      *Request::Make({.api = ApiKind::kScore, .request_id = "r", .input = std::string("words")});
  EXPECT_EQ(*ExpectedSeconds({*request, view, meter, speeds}, 0, 100), 2);
}

TEST(ExpectedSeconds, APromptThatTheTierCannotHaveIsAnError) {
  const ClusterView view = ReadyTiers({"nano"});
  FixedMeter meter;
  meter.errors["nano"] = ParamError("context_length_exceeded", "prompt", "too long");
  const RequestPtr request = Ask(11);
  EXPECT_EQ(Reason(ExpectedSeconds({*request, view, meter}, 0, 100).status()), "context_length_exceeded");
  EXPECT_EQ(Reason(CostAt({*request, view, meter}, 0, {1, 1}).status()), "context_length_exceeded");
}

TEST(RequestLimits, BothHaveToBeKept) {
  const RequestCost cost = {.usd = 2, .seconds = 3};
  const struct {
    std::optional<double> max_usd, max_seconds;
    bool fits;
    const char* param;  // of the error
  } cases[] = {{{}, {}, true, ""},
               {2, 3, true, ""},
               {1.9, {}, false, "x-terrace-max-usd"},
               {{}, 2.9, false, "x-terrace-max-seconds"},
               {2, 2.9, false, "x-terrace-max-seconds"},
               {1.9, 2.9, false, "x-terrace-max-usd"}};
  for (const auto& c : cases) {
    const RequestPtr request = Ask(11, 1, c.max_usd, c.max_seconds);
    EXPECT_EQ(FitsLimits(*request, cost), c.fits);
    if (c.fits) continue;
    const Status error = LimitsTooSmall(*request, std::vector<RequestCost>{cost});
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Reason(error), kBudgetTooSmall);
    EXPECT_EQ(Param(error), c.param);
  }
}

TEST(RequestLimits, TheErrorHasTheLeastThatWouldDo) {
  const std::vector<RequestCost> costs = {{.usd = 2, .seconds = 9}, {.usd = 1, .seconds = 10}, {.usd = 5}};
  EXPECT_THAT(Message(LimitsTooSmall(*Ask(11, 1, 0.5), costs)), HasSubstr("may cost 1 USD"));
  EXPECT_THAT(Message(LimitsTooSmall(*Ask(11, 1, 3, 4), costs)), HasSubstr("take 9 seconds"))
      << "of what can be paid";
}

}  // namespace
}  // namespace terrace
