#include "worker/sample/sampling_params.h"

#include <functional>
#include <limits>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
using Change = std::function<void(SamplingParams&)>;

TEST(ValidateSamplingParams, TakesTheEndsOfEveryRange) {
  const Change changes[] = {
      [](auto&) {},
      [](auto& p) { p.temperature = 0; },
      [](auto& p) { p.temperature = 2; },
      [](auto& p) { p.top_k = std::numeric_limits<int32_t>::max(); },
      [](auto& p) { p.top_p = 1e-6f; },
      [](auto& p) { p.min_p = 1; },
      [](auto& p) { p.repetition_penalty = 10; },
      [](auto& p) { p.presence_penalty = -2; },
      [](auto& p) { p.frequency_penalty = 2; },
      [](auto& p) {
        p.logit_bias = {{0, -100.f}, {99, 100.f}};
      },
      [](auto& p) {
        p.logit_bias.assign(1024, {5, 1.f});
      },
  };
  for (const Change& change : changes) {
    SamplingParams params;
    change(params);
    EXPECT_TRUE(ValidateSamplingParams(params, 100).ok()) << ValidateSamplingParams(params, 100);
  }
}

TEST(ValidateSamplingParams, NamesTheFieldTheValueAndTheRange) {
  const struct {
    Change change;
    const char* says[3];
  } cases[] = {
      {[](auto& p) { p.temperature = 2.5f; }, {"temperature", "2.5", "[0, 2]"}},
      {[](auto& p) { p.temperature = -1; }, {"temperature", "-1", "[0, 2]"}},
      {[](auto& p) { p.temperature = kNaN; }, {"temperature", "nan", "[0, 2]"}},
      {[](auto& p) { p.top_k = -1; }, {"top_k", "-1", "0 or more"}},
      {[](auto& p) { p.top_p = 0; }, {"top_p", "0", "(0, 1]"}},
      {[](auto& p) { p.top_p = 1.5f; }, {"top_p", "1.5", "(0, 1]"}},
      {[](auto& p) { p.min_p = -0.5f; }, {"min_p", "-0.5", "[0, 1]"}},
      {[](auto& p) { p.repetition_penalty = 0; }, {"repetition_penalty", "0", "(0, 10]"}},
      {[](auto& p) { p.presence_penalty = 3; }, {"presence_penalty", "3", "[-2, 2]"}},
      {[](auto& p) { p.frequency_penalty = kNaN; }, {"frequency_penalty", "nan", "[-2, 2]"}},
      {[](auto& p) {
         p.logit_bias = {{100, 1.f}};
       },
       {"logit_bias", "100", "[0, 100)"}},
      {[](auto& p) {
         p.logit_bias = {{-1, 1.f}};
       },
       {"logit_bias", "-1", "[0, 100)"}},
      {[](auto& p) {
         p.logit_bias = {{7, 101.f}};
       },
       {"logit_bias", "token 7", "[-100, 100]"}},
      {[](auto& p) {
         p.logit_bias.assign(1025, {5, 1.f});
       },
       {"logit_bias", "1025", "1024"}},
  };
  for (const auto& c : cases) {
    SamplingParams params;
    c.change(params);
    const Status status = ValidateSamplingParams(params, 100);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Reason(status), "invalid_value");
    for (const char* part : c.says) {
      EXPECT_NE(Message(status).find(part), std::string::npos) << Message(status) << " lacks " << part;
    }
  }
}

}  // namespace
}  // namespace terrace
