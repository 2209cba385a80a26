#include "router/server/options.h"

#include "base/config.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::StartsWith;

constexpr char kDemo[] = R"(
tiers:
  - name: nano
    workers: ["127.0.0.1:50061"]
    usd_per_million_prompt_tokens: 0.02
    usd_per_million_completion_tokens: 0.05
    aliases: [gpt-tiny]
  - name: base
    workers: ["127.0.0.1:50062", "dns:///workers:50061"]
policies:
  - name: auto
    cascade:
      steps:
        - {tier: nano, min_mean_logprob: -0.1}
        - {tier: base}
)";

StatusOr<RouterOptions> Parse(const std::string& yaml, const std::string& override_text = "") {
  v1::RouterConfig config;
  RETURN_IF_ERROR(ParseYaml(yaml, "test.yaml", config));
  if (!override_text.empty()) RETURN_IF_ERROR(ApplyOverride(override_text, config));
  return MakeRouterOptions(config);
}

TEST(RouterOptions, AbsentSettingsHaveTheirDefaults) {
  const auto options = Parse(kDemo);
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->http, "127.0.0.1:8080");
  EXPECT_EQ(options->grpc, "127.0.0.1:50051");
  EXPECT_EQ(options->ops, "127.0.0.1:9090");
  EXPECT_EQ(options->max_in_flight, 1024u);
  EXPECT_EQ(options->default_timeout_seconds, 600);
  EXPECT_EQ(options->watch_timeout_seconds, 3);
  EXPECT_EQ(options->balance, BalancePolicy::kPrefix);
  ASSERT_EQ(options->tiers.size(), 2u);
  EXPECT_EQ(options->tiers[0].price.usd_per_million_prompt_tokens, 0.02);
  EXPECT_THAT(options->workers[1], ElementsAre("127.0.0.1:50062", "dns:///workers:50061"));
  ASSERT_EQ(options->policies.size(), 1u);
  EXPECT_EQ(options->policies[0].steps[0].min_mean_logprob, -0.1);
  EXPECT_TRUE(options->log.as_json);
}

TEST(RouterOptions, AnEmptyAddressTurnsAListenerOff) {
  EXPECT_EQ(Parse(kDemo, "listen.http=\"\"")->http, "");
}

TEST(RouterOptions, EveryErrorNamesThePathOfItsSetting) {
  const struct {
    const char* change;
    const char* path;
  } cases[] = {
      {"tiers=[]", "tiers:"},
      {"tiers[1].name=nano", "tiers[1].name:"},
      {"tiers[1].name=Base", "tiers[1].name:"},
      {"tiers[1].name=\"\"", "tiers[1].name:"},
      {"tiers[0].aliases=[auto]", "policies[0].name:"},
      {"tiers[0].aliases=[base]", "tiers[1].name:"},
      {"tiers[0].workers=[]", "tiers[0].workers:"},
      {"tiers[0].workers=[\"nohost\"]", "tiers[0].workers:"},
      {"tiers[0].usd_per_million_prompt_tokens=-1", "tiers[0].usd_per_million_prompt_tokens:"},
      {"policies[0].cascade.steps=[]", "policies[0].cascade.steps:"},
      {"policies[0].cascade.steps[0].tier=absent", "policies[0].cascade.steps[0].tier:"},
      {"policies[0].cascade.steps[0].min_mean_logprob=0.5", "policies[0].cascade.steps[0].min_mean_logprob:"},
      {"policies[0].cascade.steps[1].min_mean_logprob=-1", "policies[0].cascade.steps[1].min_mean_logprob:"},
      {"policies[0].cascade.steps=[{tier: nano},{tier: base}]",
       "policies[0].cascade.steps[0].min_mean_logprob:"},
      {"default_model=absent", "default_model:"},
      {"listen.http=nonsense", "listen.http:"},
      {"admission.max_in_flight=0", "admission.max_in_flight:"},
      {"admission.default_timeout_seconds=0", "admission.default_timeout_seconds:"},
      {"cluster.watch_timeout_seconds=0.1", "cluster.watch_timeout_seconds:"},
      {"balance.policy=random", "balance.policy:"},
      {"log.level=loud", "log.level:"},
      {"log.format=xml", "log.format:"},
  };
  for (const auto& c : cases) {
    const auto options = Parse(kDemo, c.change);
    ASSERT_FALSE(options.ok()) << c.change;
    EXPECT_EQ(options.status().code(), StatusCode::kFailedPrecondition) << c.change;
    EXPECT_THAT(Message(options.status()), StartsWith(c.path)) << c.change;
  }
}

}  // namespace
}  // namespace terrace
