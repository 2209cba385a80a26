#include "tools/cli/status.h"

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/test_context.h"

namespace terrace {
namespace {

using testing::HasSubstr;

Json Replica(const char* address, const char* state, const char* last_error) {
  return {{"address", address},  {"state", state},          {"model", "m"},
          {"model_digest", "d"}, {"device", "cpu"},         {"running", 1},
          {"waiting", 2},        {"free_blocks", 3},        {"total_blocks", 40},
          {"cached_blocks", 30}, {"last_error", last_error}};
}

TEST(FormatStatus, ShowsEveryReplicaAndItsError) {
  const TestContext test;
  Json statusz = {
      {"version", "0.1.0"},
      {"uptime_seconds", 3700.5},
      {"in_flight", 5},
      {"models", Json::array()},
      {"tiers",
       {{{"name", "nano"},
         {"usd_per_million_prompt_tokens", 0.0026},
         {"usd_per_million_completion_tokens", 0.0026},
         {"replicas",
          {Replica("a:1", "ready", ""), Replica("b:2", "down", "refused"), Replica("c:3", "ready", "")}}},
        {{"name", "empty"}, {"replicas", Json::array()}}}}};
  statusz["tiers"][0]["replicas"][2]["rank_bytes"] = {100, 101};
  statusz["tiers"][0]["replicas"][2]["pipeline_parallel"] = 0;  // an older worker's
  statusz["tiers"][0]["replicas"][1]["rank_bytes"] = {100, 101, 102, 103, 104, 105};
  statusz["tiers"][0]["replicas"][1]["tensor_parallel"] = 2;
  statusz["tiers"][0]["replicas"][1]["pipeline_parallel"] = 3;
  const StatusOr<std::string> text = FormatStatus(statusz, test.context);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, HasSubstr("up 1 h 1 min, 5 requests in flight"));
  EXPECT_THAT(*text, testing::ContainsRegex("nano +a:1 +ready +m +cpu +0.0026 +0.0026 +1 +2 +3/40 +30"));
  EXPECT_THAT(*text, testing::ContainsRegex("nano +b:2 +down +m +cpu, 6 ranks \\(TP 2 x PP 3\\) +0.0026"));
  EXPECT_THAT(*text, HasSubstr("b:2: refused\n"));
  EXPECT_THAT(*text, testing::ContainsRegex("nano +c:3 +ready +m +cpu, 2 ranks +0.0026"));
  EXPECT_THAT(*text, testing::ContainsRegex("empty +\\(none\\)"));
}

TEST(FormatStatus, ShowsWhoDraftsWhereAndHowOftenItIsRight) {
  const TestContext test;
  Json drafted = Replica("a:1", "ready", ""), idle = Replica("b:2", "ready", "");
  drafted.update(
      {{"drafter", "nano on cpu avx2"}, {"speculated_tokens", 2000}, {"accepted_speculated_tokens", 1250}});
  idle.update({{"drafter", "ngram"}, {"speculated_tokens", 0}, {"accepted_speculated_tokens", 0}});
  const Json statusz = {
      {"version", "0.1.0"},
      {"uptime_seconds", 1},
      {"in_flight", 1},
      {"tiers", Json::array({{{"name", "base"},
                              {"usd_per_million_prompt_tokens", 0.1 + 0.2},
                              {"usd_per_million_completion_tokens", 0.03},
                              {"replicas", {drafted, idle, Replica("c:3", "ready", "")}}}})}};
  const StatusOr<std::string> text = FormatStatus(statusz, test.context);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, HasSubstr(", 1 request in flight\n"));
  EXPECT_THAT(*text, HasSubstr(" 0.3  ")) << "not 0.30000000000000004";
  EXPECT_THAT(*text, HasSubstr("drafts: a:1: nano on cpu avx2, 62% of 2,000 tokens accepted\n"));
  EXPECT_THAT(*text, HasSubstr("drafts: b:2: ngram, none verified yet\n"));
  EXPECT_THAT(*text, testing::Not(HasSubstr("drafts: c:3")));
}

TEST(FormatStatus, RefusesWhatIsNoStatus) {
  const TestContext test;
  const Json cases[] = {
      Json::object(), Json::array(), {{"uptime_seconds", "x"}}, {{"uptime_seconds", 1}, {"tiers", {1}}}};
  for (const Json& json : cases) {
    EXPECT_EQ(FormatStatus(json, test.context).status().code(), StatusCode::kDataLoss) << json;
  }
}

TEST(RunStatus, SaysInOneLineThatNoRouterAnswers) {
  TestContext test;
  const Status status = RunStatus({.router_ops = "127.0.0.1:1"}, test.context);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr("127.0.0.1:1"));
}

}  // namespace
}  // namespace terrace
