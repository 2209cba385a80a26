#include "base/metrics.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <thread>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::HasSubstr;

constexpr std::string_view kTypeNames[] = {"counter", "gauge", "histogram"};

// A registry in which every metric of the table has one time series.
void TouchAll(MetricRegistry& registry) {
  for (const MetricInfo& info : AllMetrics()) {
    const std::vector<std::string> values(info.labels.size(), "value \"with\\quotes\"\n");
    if (info.type == MetricType::kCounter) registry.GetCounter(info.name, values).Add(2);
    if (info.type == MetricType::kGauge) registry.GetGauge(info.name, values).Set(0.5);
    if (info.type == MetricType::kHistogram) registry.GetHistogram(info.name, values).Observe(0.1);
  }
}

TEST(MetricTable, FollowsTheNamingRules) {
  std::set<std::string_view> names;
  for (const MetricInfo& info : AllMetrics()) {
    SCOPED_TRACE(info.name);
    EXPECT_TRUE(names.insert(info.name).second) << "listed twice";
    EXPECT_TRUE(info.name.starts_with("terrace_"));
    EXPECT_EQ(info.name.ends_with("_total"), info.type == MetricType::kCounter);
    EXPECT_FALSE(info.help.empty());
    EXPECT_EQ(info.buckets.empty(), info.type != MetricType::kHistogram);
    EXPECT_TRUE(std::is_sorted(info.buckets.begin(), info.buckets.end()));
  }
}

TEST(MetricTable, IsWhatTheDocumentationLists) {
  std::string table;
  for (const MetricInfo& info : AllMetrics()) {
    std::string labels;
    for (const auto label : info.labels) labels += Concat(labels.empty() ? "" : ", ", label);
    table += Concat("| `", info.name, "` | ", kTypeNames[static_cast<size_t>(info.type)], " | ", labels,
                    labels.empty() ? "| " : " | ", info.help, " |\n");
  }
  std::string documented;
  std::ifstream document("docs/metrics.md");
  ASSERT_TRUE(document.is_open());
  for (std::string line; std::getline(document, line);) {
    if (line.starts_with("| `terrace_")) documented += line + "\n";
  }
  EXPECT_EQ(documented, table) << "docs/metrics.md and the table in base/metrics.cc differ";
}

TEST(MetricRegistry, RendersWhatWasCounted) {
  MetricRegistry registry;
  EXPECT_EQ(registry.Render(), "");
  const std::vector<std::string> labels = {"chat", "demo", "nano", "ok", "stop"};
  auto& counter = registry.GetCounter("terrace_requests_total", labels);
  counter.Add();
  counter.Add(2);
  EXPECT_EQ(&registry.GetCounter("terrace_requests_total", labels), &counter);
  registry.GetGauge("terrace_requests_in_flight").Set(7);
  auto& histogram =
      registry.GetHistogram("terrace_time_to_first_token_seconds", std::vector<std::string>{"nano"});
  histogram.Observe(0.5);
  histogram.Observe(1000);
  const std::string text = registry.Render();
  EXPECT_THAT(text, HasSubstr("# TYPE terrace_requests_total counter\n"));
  EXPECT_THAT(
      text,
      HasSubstr(
          "terrace_requests_total{api=\"chat\",finish_reason=\"stop\",model=\"demo\",outcome=\"ok\",tier="
          "\"nano\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("terrace_requests_in_flight 7\n"));
  EXPECT_THAT(text, HasSubstr("terrace_time_to_first_token_seconds_bucket{tier=\"nano\",le=\"0.5\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("terrace_time_to_first_token_seconds_bucket{tier=\"nano\",le=\"+Inf\"} 2\n"));
}

TEST(MetricRegistry, CountsFromManyThreadsWhileItIsRendered) {
  MetricRegistry registry;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&registry] {
        for (int i = 0; i < 500; ++i) {
          registry.GetCounter("terrace_prompt_tokens_total", std::vector<std::string>{"nano"}).Add();
          registry.GetHistogram("terrace_engine_step_seconds", std::vector<std::string>{"decode"})
              .Observe(0.001);
        }
      });
    }
    for (int i = 0; i < 20; ++i) registry.Render();
  }
  EXPECT_THAT(registry.Render(), HasSubstr("terrace_prompt_tokens_total{tier=\"nano\"} 2000\n"));
}

TEST(MetricRegistryDeathTest, RefusesWhatTheTableDoesNotHave) {
  MetricRegistry registry;
  EXPECT_DEATH(registry.GetCounter("terrace_unknown_total"), "no metric");
  EXPECT_DEATH(registry.GetGauge("terrace_numeric_errors_total"), "another type");
  EXPECT_DEATH(registry.GetCounter("terrace_prompt_tokens_total"), "1 labels, asked with 0");
}

TEST(MetricRegistry, PassesPrometheusLint) {
  const char* named = getenv("TERRACE_PROMTOOL");
  const std::string path = named != nullptr ? named : "/usr/bin/promtool";
  if (access(path.c_str(), X_OK) != 0) GTEST_SKIP() << path << " is not there (Debian package prometheus)";
  MetricRegistry registry;
  TouchAll(registry);
  FILE* promtool = popen((path + " check metrics 2>&1").c_str(), "w");
  ASSERT_NE(promtool, nullptr);
  const std::string text = registry.Render();
  EXPECT_EQ(fwrite(text.data(), 1, text.size(), promtool), text.size());
  EXPECT_EQ(pclose(promtool), 0) << text;
}

}  // namespace
}  // namespace terrace
