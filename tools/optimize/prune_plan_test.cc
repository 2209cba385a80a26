#include "tools/optimize/prune_plan.h"

#include <cmath>

#include "gtest/gtest.h"

namespace terrace {
namespace {

ModelConfig Config() {
  ModelConfig config;
  config.layers = 3;
  config.heads = 8;
  config.kv_heads = 4;
  config.head_dim = 16;
  config.ffn_size = 6;
  return config;
}

// Layer 1 turns the least; channel i of layer l matters (l + 1) * (i + 1), KV head 2 the least.
std::vector<LayerImportance> Importance() {
  std::vector<LayerImportance> out;
  for (const double turned : {0.5, 0.1, 0.3}) {
    LayerImportance layer = {.turned = turned, .kv_heads = {4, 3, 1, 2}};
    for (int i = 0; i < 6; ++i) layer.channels.push_back(static_cast<double>((out.size() + 1) * (i + 1)));
    out.push_back(layer);
  }
  return out;
}

TEST(PlanCut, TheLeastImportantGo) {
  const auto plan = PlanCut({.kv_heads = 2, .layers = 1}, Config(), Importance());
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].layer, 0u);
  EXPECT_EQ(plan[1].layer, 2u);
  for (const LayerPlan& layer : plan) {
    EXPECT_EQ(layer.kv_heads, (std::vector<uint32_t>{0, 1}));
    EXPECT_EQ(layer.channels, (std::vector<uint32_t>{0, 1, 2, 3, 4, 5}));
  }
  const ModelConfig after = ConfigAfter(Config(), plan);
  EXPECT_EQ(after.layers, 2u);
  EXPECT_EQ(after.heads, 4u);
  EXPECT_EQ(after.kv_heads, 2u);
  EXPECT_EQ(after.ffn_size, 6u);
  EXPECT_TRUE(after.ffn_sizes.empty());
}

TEST(PlanCut, ChannelsOfAllLayersCompeteInMultiples) {
  // In pairs the means are, of layer 0, 1.5 and 3.5 and 5.5, of layer 1 3 and more, of layer 2 4.5 and more.
  // Three pairs go.
  const auto plan = PlanCut({.ffn_share = 0.35, .multiple = 2}, Config(), Importance());
  ASSERT_EQ(plan.size(), 3u);
  EXPECT_EQ(plan[0].channels, (std::vector<uint32_t>{4, 5}));
  EXPECT_EQ(plan[1].channels, (std::vector<uint32_t>{2, 3, 4, 5}));
  EXPECT_EQ(plan[2].channels, (std::vector<uint32_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(ConfigAfter(Config(), plan).ffn_sizes, (std::vector<uint32_t>{2, 4, 6}));
}

TEST(PlanCut, EveryLayerKeepsAMultiple) {
  for (const LayerPlan& layer : PlanCut({.ffn_share = 0.99, .multiple = 4}, Config(), Importance()))
    EXPECT_EQ(layer.channels, (std::vector<uint32_t>{2, 3, 4, 5}));
}

TEST(Plan, GoesThroughTextAndBack) {
  const auto plan =
      PlanCut({.ffn_share = 0.4, .kv_heads = 1, .layers = 1, .multiple = 2}, Config(), Importance());
  const auto again = PlanFromText(PlanToText(plan), Config());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(PlanToText(*again), PlanToText(plan));
  for (const char* text :
       {"", "[]", "{}", "[1]", R"([{"layer":3,"kv_heads":[0],"channels":[0]}])",
        R"([{"layer":0,"kv_heads":[4],"channels":[0]}])", R"([{"layer":0,"kv_heads":[0],"channels":[1,1]}])",
        R"([{"layer":0,"kv_heads":[],"channels":[0]}])"})
    EXPECT_FALSE(PlanFromText(text, Config()).ok()) << text;
}

TEST(CheckCut, NamesTheFlagAndTheLimit) {
  const struct {
    Cut cut;
    const char* mention;
  } cases[] = {{{.ffn_share = 1}, "--remove-ffn: 1"},
               {{.ffn_share = -0.1}, "--remove-ffn"},
               {{.ffn_share = NAN}, "--remove-ffn"},
               {{.ffn_share = 0.01, .multiple = 2}, "--remove-ffn"},
               {{.ffn_share = 0.5, .multiple = 6}, "--ffn-multiple"},
               {{.ffn_share = 0.5, .multiple = 0}, "--ffn-multiple"},
               {{.kv_heads = 4}, "--remove-kv-heads: 4 of the 4"},
               {{.layers = 3}, "--remove-layers: 3 of 3"}};
  for (const auto& c : cases) {
    const Status status = CheckCut(c.cut, Config());
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.mention;
    EXPECT_NE(Message(status).find(c.mention), std::string::npos) << status;
  }
  EXPECT_EQ(CheckCut({.ffn_share = 0.5, .multiple = 2}, Config()), Status());
}

}  // namespace
}  // namespace terrace
