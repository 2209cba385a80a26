#include "tools/optimize/model_shapes.h"

#include "gtest/gtest.h"
#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

uint64_t Parameters(const ModelConfig& config) {
  uint64_t parameters = 0;
  for (const auto& tensor : RequiredTensors(config)) parameters += ElementCount(tensor.shape).value();
  return parameters;
}

TEST(ModelShapes, HaveThePublishedNumbersOfParameters) {
  // From the models' cards; Qwen 2.5 0.5B has 24 layers of (14 + 2 + 2) * 64 biases besides.
  EXPECT_EQ(Parameters(FindModelShape("135m").value()), 134'515'008u);
  EXPECT_EQ(Parameters(FindModelShape("0.5b").value()), 494'032'768u - 24 * 18 * 64);
  EXPECT_EQ(Parameters(FindModelShape("1b").value()), 1'235'814'400u);
  EXPECT_EQ(Parameters(FindModelShape("8b").value()), 8'030'261'248u);
}

TEST(ModelShapes, AreValidAndSurviveNoChange) {
  for (const std::string_view name : kModelShapes) {
    const auto shape = FindModelShape(name);
    ASSERT_TRUE(shape.ok()) << shape.status();
    const auto same = ChangeShape(*shape, {});
    ASSERT_TRUE(same.ok()) << same.status();
    EXPECT_EQ(ConfigJsonText(*same), ConfigJsonText(*shape));
  }
  const Status status = FindModelShape("70b").status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(Message(status).find("135m, 0.5b, 1b, 8b"), std::string::npos) << status;
}

TEST(ChangeShape, SetsWhatIsGivenAndFollowsTheHeads) {
  const ModelConfig shape = FindModelShape("135m").value();
  const auto changed = ChangeShape(shape, {.layers = 2,
                                           .hidden = 64,
                                           .heads = 4,
                                           .kv_heads = 2,
                                           .ffn = 96,
                                           .vocab = 300,
                                           .context = 128,
                                           .tied = false});
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_EQ(changed->layers, 2u);
  EXPECT_EQ(changed->head_dim, 16u);
  EXPECT_EQ(changed->vocab_size, 300u);
  EXPECT_FALSE(changed->tied_embeddings);
  EXPECT_EQ(ChangeShape(shape, {.layers = 1}).value().head_dim, 64u);
  EXPECT_EQ(ChangeShape(shape, {.hidden = 100, .head_dim = 8}).value().head_dim, 8u);
}

TEST(ChangeShape, KeepsUnequalFeedForwardSizesUnlessTheyOrTheLayersChange) {
  ModelConfig shape = ChangeShape(FindModelShape("135m").value(), {.layers = 3}).value();
  SetFfnSizes({64, 32, 96}, shape);
  EXPECT_EQ(ChangeShape(shape, {.vocab = 300}).value().ffn_sizes, shape.ffn_sizes);
  for (const ShapeChanges& changes : {ShapeChanges{.ffn = 48}, ShapeChanges{.layers = 2}}) {
    const auto changed = ChangeShape(shape, changes);
    ASSERT_TRUE(changed.ok()) << changed.status();
    EXPECT_TRUE(changed->ffn_sizes.empty());
    EXPECT_EQ(changed->ffn_size, changes.ffn.value_or(96));
  }
}

TEST(ChangeShape, RefusesWhatDoesNotDivideOrFitWithItsNumbers) {
  const struct {
    ShapeChanges changes;
    std::vector<const char*> mentions;
  } cases[] = {{{.heads = 7}, {"--heads", "7", "576"}},
               {{.kv_heads = 4}, {"--kv-heads", "4", "9"}},
               {{.head_dim = 63}, {"--head-dim", "63"}},
               {{.hidden = 27, .heads = 9}, {"--head-dim", "3"}},
               {{.layers = 0}, {"--layers", "0", "1024"}},
               {{.heads = 0}, {"--heads", "0"}},
               {{.kv_heads = 0}, {"--kv-heads", "0"}},
               {{.ffn = 0}, {"--ffn", "0"}},
               {{.vocab = 2'000'000}, {"--vocab", "2000000", "1048576"}},
               {{.context = 0}, {"--context", "0"}}};
  for (const auto& c : cases) {
    const Status status = ChangeShape(FindModelShape("135m").value(), c.changes).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    for (const char* text : c.mentions)
      EXPECT_NE(Message(status).find(text), std::string::npos) << status << " lacks " << text;
  }
}

}  // namespace
}  // namespace terrace
