#include "tools/optimize/prune_plan.h"

#include <cmath>

#include "gtest/gtest.h"

namespace terrace {
namespace {

ModelConfig Config() {
  ModelConfig config;
  config.hidden_size = 96;
  config.layers = 3;
  config.heads = 8;
  config.kv_heads = 4;
  config.head_dim = 16;
  config.ffn_size = 6;
  return config;
}

// Layer 1 turns the least; channel i of layer l matters (l + 1) * (i + 1), KV head 2 the least. Of the stream
// the channels from 64 on have half of the squares where layers read it, and a third at the end; they matter
// the less the later they come.
ModelImportance Importance() {
  const auto use = [](double share) {
    StreamUse out;
    for (int i = 0; i < 96; ++i) {
      out.energy.push_back(i < 64 ? (1 - share) / 64 : share / 32);
      out.importance.push_back((96 - i) / 4656.0);
    }
    return out;
  };
  ModelImportance out = {.layers = {}, .output = use(1.0 / 3)};
  for (const double turned : {0.5, 0.1, 0.3}) {
    LayerImportance layer = {.turned = turned, .kv_heads = {4, 3, 1, 2}};
    for (int i = 0; i < 6; ++i)
      layer.channels.push_back(static_cast<double>((out.layers.size() + 1) * (i + 1)));
    layer.attention = layer.ffn = use(0.5);
    out.layers.push_back(layer);
  }
  return out;
}

TEST(PlanCut, TheLeastImportantGo) {
  const auto plan = PlanCut({.kv_heads = 2, .layers = 1}, Config(), Importance());
  ASSERT_EQ(plan.layers.size(), 2u);
  EXPECT_EQ(plan.layers[0].layer, 0u);
  EXPECT_EQ(plan.layers[1].layer, 2u);
  EXPECT_EQ(plan.final_gain, 1);
  for (const LayerPlan& layer : plan.layers) {
    EXPECT_EQ(layer.attention_gain, 1);
    EXPECT_EQ(layer.kv_heads, (std::vector<uint32_t>{0, 1}));
    EXPECT_EQ(layer.channels, (std::vector<uint32_t>{0, 1, 2, 3, 4, 5}));
  }
  const ModelConfig after = ConfigAfter(Config(), plan);
  EXPECT_EQ(after.hidden_size, 96u);
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
  ASSERT_EQ(plan.layers.size(), 3u);
  EXPECT_EQ(plan.layers[0].channels, (std::vector<uint32_t>{4, 5}));
  EXPECT_EQ(plan.layers[1].channels, (std::vector<uint32_t>{2, 3, 4, 5}));
  EXPECT_EQ(plan.layers[2].channels, (std::vector<uint32_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(ConfigAfter(Config(), plan).ffn_sizes, (std::vector<uint32_t>{2, 4, 6}));
}

TEST(PlanCut, EveryLayerKeepsAMultiple) {
  const auto plan = PlanCut({.ffn_share = 0.99, .multiple = 4}, Config(), Importance());
  for (const LayerPlan& layer : plan.layers) EXPECT_EQ(layer.channels, (std::vector<uint32_t>{2, 3, 4, 5}));
}

TEST(PlanCut, ChannelsOfTheStreamGoByTheSumOverAllNormsAndGainsKeepTheScale) {
  ModelImportance importance = Importance();
  const auto first_64 = PlanCut({.hidden = 32}, Config(), importance);
  ASSERT_EQ(first_64.hidden.size(), 64u);
  EXPECT_EQ(first_64.hidden.front(), 0u);
  EXPECT_EQ(first_64.hidden.back(), 63u);
  EXPECT_EQ(ConfigAfter(Config(), first_64).hidden_size, 64u);
  // Half of the squares in two thirds of the channels, and two thirds of them.
  for (const LayerPlan& layer : first_64.layers) {
    EXPECT_NEAR(layer.attention_gain, std::sqrt(0.75), 1e-12);
    EXPECT_NEAR(layer.ffn_gain, std::sqrt(0.75), 1e-12);
  }
  EXPECT_NEAR(first_64.final_gain, 1, 1e-12);

  // What one norm needs outweighs the others; a layer that goes has no say.
  importance.layers[2].ffn.importance[95] = 1;
  EXPECT_EQ(PlanCut({.hidden = 32}, Config(), importance).hidden.back(), 95u);
  importance = Importance();
  importance.layers[1].ffn.importance[95] = 1;
  EXPECT_EQ(PlanCut({.layers = 1, .hidden = 32}, Config(), importance).hidden.back(), 63u);
}

TEST(UseOfStream, IsWhatTheGainsAndColumnsMakeOfTheChannels) {
  const std::vector<float> gains = {1, -2, 0, 1};
  const std::vector<double> columns = {3, 1, 9, 0};
  const StreamUse use = UseOfStream({0.25, 0.25, 0.25, 0.25}, gains, columns);
  EXPECT_EQ(use.energy, (std::vector<double>{0.25, 0.25, 0.25, 0.25}));
  EXPECT_NEAR(use.importance[0], 3.0 / 7, 1e-12);
  EXPECT_NEAR(use.importance[1], 4.0 / 7, 1e-12);
  EXPECT_EQ(use.importance[2], 0);
  EXPECT_EQ(use.importance[3], 0);
  EXPECT_EQ(UseOfStream({0, 0}, std::vector<float>{1, 1}, std::vector<double>{1, 1}).importance,
            (std::vector<double>{0, 0}));
}

TEST(Plan, GoesThroughTextAndBack) {
  const auto plan = PlanCut({.ffn_share = 0.4, .kv_heads = 1, .layers = 1, .hidden = 32, .multiple = 2},
                            Config(), Importance());
  const auto again = PlanFromText(PlanToText(plan), Config());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(PlanToText(*again), PlanToText(plan));
  EXPECT_EQ(again->layers[0].ffn_gain, plan.layers[0].ffn_gain);  // to the bit
  const std::string layer = R"({"layer":0,"kv_heads":[0],"channels":[0],"attention_gain":1,"ffn_gain":1})";
  const auto of = [](const std::string& hidden, const std::string& gain, const std::string& layers) {
    return R"({"hidden":)" + hidden + R"(,"final_gain":)" + gain + R"(,"layers":[)" + layers + "]}";
  };
  EXPECT_TRUE(PlanFromText(of("[0,95]", "1", layer), Config()).ok());
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("{}"), of("[0]", "1", ""), of("[0]", "1", "1"),
        of("[96]", "1", layer), of("[]", "1", layer), of("[0]", "0", layer), of("[0]", "\"1\"", layer),
        of("[0]", "1", R"({"layer":3,"kv_heads":[0],"channels":[0],"attention_gain":1,"ffn_gain":1})"),
        of("[0]", "1", R"({"layer":0,"kv_heads":[4],"channels":[0],"attention_gain":1,"ffn_gain":1})"),
        of("[0]", "1", R"({"layer":0,"kv_heads":[0],"channels":[1,1],"attention_gain":1,"ffn_gain":1})"),
        of("[0]", "1", R"({"layer":0,"kv_heads":[],"channels":[0],"attention_gain":1,"ffn_gain":1})"),
        of("[0]", "1", R"({"layer":0,"kv_heads":[0],"channels":[0]})")})
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
               {{.layers = 3}, "--remove-layers: 3 of 3"},
               {{.hidden = 96}, "--remove-hidden: 96 of 96"},
               {{.hidden = 16}, "--remove-hidden: 16 of 96 leave 80, which is no multiple of 32"}};
  for (const auto& c : cases) {
    const Status status = CheckCut(c.cut, Config());
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.mention;
    EXPECT_NE(Message(status).find(c.mention), std::string::npos) << status;
  }
  EXPECT_EQ(CheckCut({.ffn_share = 0.5, .hidden = 64, .multiple = 2}, Config()), Status());
}

}  // namespace
}  // namespace terrace
