#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/request/param.h"
#include "router/tier/gate.h"
#include "router/tier/model_catalog.h"
#include "router/tier/price.h"
#include "router/tier/tier_policy.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

RequestPtr AnyRequest() { return *Request::Make({.request_id = "r", .input = std::string("x")}); }

TEST(Gate, AcceptsStrictlyAboveItsThreshold) {
  const Gate gate(-0.5);
  const struct {
    AnswerSignals signals;
    bool want;
  } cases[] = {
      {{10, -0.4}, true}, {{10, -0.5}, false},         {{10, -0.6}, false},
      {{0, 0}, false},    {{10, std::nan("")}, false},
  };
  for (const auto& c : cases) EXPECT_EQ(gate.Accepts(c.signals), c.want) << c.signals.mean_logprob;
}

TEST(Gate, WithoutAThresholdAcceptsEverything) {
  EXPECT_TRUE(Gate().Accepts({0, 0}));
  EXPECT_TRUE(Gate().Accepts({3, -100}));
}

TEST(Price, IsLinearInPromptAndCompletionTokensAndCountsCachedOnesAsPrompt) {
  const TierPrice price{2, 6};
  EXPECT_DOUBLE_EQ(PriceUsd(price, {1'000'000, 0, 0}), 2);
  EXPECT_DOUBLE_EQ(PriceUsd(price, {0, 0, 1'000'000}), 6);
  EXPECT_DOUBLE_EQ(PriceUsd(price, {100, 100, 10}), (200 + 60) / 1e6);
  EXPECT_DOUBLE_EQ(PriceUsd(price, {}), 0);
}

TEST(CascadePolicy, KeepsTheOrderAndOnlyTheLastGateIsOpen) {
  const auto policy = MakeCascadePolicy({{1, -0.2}, {0, -0.3}, {2, {}}});
  const auto plan = policy->Plan(*AnyRequest(), {});
  ASSERT_EQ(plan.size(), 3u);
  EXPECT_EQ(plan[0].tier, 1u);
  EXPECT_EQ(plan[0].gate.threshold(), -0.2);
  EXPECT_EQ(plan[1].gate.threshold(), -0.3);
  EXPECT_EQ(plan[2].tier, 2u);
  EXPECT_FALSE(plan[2].gate.threshold().has_value());
}

StatusOr<std::unique_ptr<ModelCatalog>> DemoCatalog(const std::string& default_model) {
  return ModelCatalog::Make({{.name = "nano", .aliases = {"gpt-tiny"}}, {.name = "base"}},
                            {{.name = "auto", .steps = {{0, -0.1}, {1, {}}}}}, default_model);
}

TEST(ModelCatalog, FindsTiersPoliciesAndAliases) {
  const auto catalog = DemoCatalog("");
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  EXPECT_EQ((*(*catalog)->Find("base"))->id, "base");
  EXPECT_EQ((*(*catalog)->Find("gpt-tiny"))->id, "nano");
  EXPECT_TRUE((*(*catalog)->Find("auto"))->is_policy);
  EXPECT_THAT((*(*catalog)->Find("auto"))->tiers, ElementsAre(0, 1));
}

TEST(ModelCatalog, NoNameMeansTheDefault) {
  EXPECT_EQ((*(*DemoCatalog(""))->Find(""))->id, "auto");
  EXPECT_EQ((*(*DemoCatalog("gpt-tiny"))->Find(""))->id, "nano");
  const auto only_tiers = ModelCatalog::Make({{.name = "nano"}, {.name = "base"}}, {}, "");
  EXPECT_EQ((*(*only_tiers)->Find(""))->id, "nano");
}

TEST(ModelCatalog, AnUnknownNameIsModelNotFound) {
  const auto found = (*DemoCatalog(""))->Find("../x");
  EXPECT_EQ(found.status().code(), StatusCode::kNotFound);
  EXPECT_EQ(Reason(found.status()), "model_not_found");
  EXPECT_EQ(Param(found.status()), "model");
  EXPECT_THAT(Message(found.status()), HasSubstr("\"../x\""));
}

TEST(ModelCatalog, AnUnknownNameIsEchoedOnlyWhenItIsPlainAndShort) {
  const auto catalog = DemoCatalog("");
  const std::string longest(64, 'm');
  EXPECT_THAT(Message((*catalog)->Find(longest).status()), HasSubstr(longest));
  for (const std::string& name :
       {longest + "m", std::string("a b"), std::string("a\n"), std::string("caf\xc3\xa9"), std::string("<x>"),
        std::string("a\"b"), std::string("a\0b", 3)}) {
    const Status error = (*catalog)->Find(name).status();
    EXPECT_EQ(Reason(error), "model_not_found") << name;
    EXPECT_EQ(Message(error).find(name.substr(0, 3)), std::string::npos) << Message(error);
  }
}

TEST(ModelCatalog, ANameForTwoThingsOrAnUnknownDefaultIsRefused) {
  EXPECT_EQ(DemoCatalog("absent").status().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(ModelCatalog::Make({{.name = "a"}, {.name = "a"}}, {}, "").status().code(),
            StatusCode::kFailedPrecondition);
  EXPECT_EQ(ModelCatalog::Make({{.name = "a", .aliases = {"p"}}}, {{.name = "p", .steps = {{0, {}}}}}, "")
                .status()
                .code(),
            StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace terrace
