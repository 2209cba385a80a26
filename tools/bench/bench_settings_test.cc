#include "tools/bench/bench_settings.h"

#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(BenchSettings, WhatMakesNoSenseIsRefusedByItsFlag) {
  const struct {
    const char* flag;
    std::function<void(BenchSettings&)> change;
  } cases[] = {
      {"--concurrency", [](auto& s) { s.levels = {ClosedLoop{0}}; }},
      {"--concurrency",
       [](auto& s) {
         s.levels = {ClosedLoop{1}, ClosedLoop{1'000'000}};
       }},
      {"levels", [](auto& s) { s.levels.clear(); }},
      {"levels", [](auto& s) { s.levels.resize(65); }},
      {"--rate", [](auto& s) { s.levels = {OpenLoop{.rate = 0}}; }},
      {"--rate", [](auto& s) { s.levels = {OpenLoop{.rate = -1}}; }},
      {"--max-in-flight", [](auto& s) { s.levels = {OpenLoop{.max_in_flight = 0}}; }},
      {"--requests", [](auto& s) { s.requests = 0; }},
      {"--duration", [](auto& s) { s.requests.reset(); }},
      {"--temperature", [](auto& s) { s.temperature = 2.5; }},
      {"--priority", [](auto& s) { s.priority = 101; }},
      {"--shared-prefix-tokens", [](auto& s) { s.workload.shared_prefix_tokens = 128; }},
      {"--prefix-groups", [](auto& s) { s.workload.prefix_groups = 2; }},
      {"--prefix-groups", [](auto& s) { s.workload.prefix_groups = 0; }},
      {"--prefix-zipf",
       [](auto& s) {
         s.workload.shared_prefix_tokens = 1;
         s.workload.prefix_zipf = 1;
       }},
      {"--cancel-fraction", [](auto& s) { s.workload.cancel_fraction = 1.1; }},
      {"--cancel-fraction",
       [](auto& s) {
         s.workload.cancel_fraction = 0.5;
         s.workload.output_tokens = LengthDistribution::Fixed(1);
       }},
  };
  BenchSettings good;
  good.requests = 10;
  EXPECT_EQ(Validate(good), Status());
  for (const auto& c : cases) {
    BenchSettings settings = good;
    c.change(settings);
    const Status status = Validate(settings);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.flag;
    EXPECT_THAT(Message(status), testing::HasSubstr(c.flag));
  }
}

TEST(ParseSeconds, ReadsNumbersWithAUnit) {
  const struct {
    const char* text;
    double want;
  } cases[] = {{"30s", 30},    {"0.5", 0.5},   {"500ms", 0.5},      {"1.5m", 90},       {"2h", 7200},
               {"20us", 2e-5}, {"20µs", 2e-5}, {"20\u03bcs", 2e-5}, {"720h", 2'592'000}};
  for (const auto& c : cases) EXPECT_DOUBLE_EQ(ParseSeconds(c.text).value_or(-1), c.want) << c.text;
  for (const char* text : {"", "s", "0", "-1s", "3 s", "1d", "nan", "inf", "721h"})
    EXPECT_EQ(ParseSeconds(text).status().code(), StatusCode::kInvalidArgument) << text;
}

}  // namespace
}  // namespace terrace
