#include "kernels/op_table.h"

#include <cmath>
#include <limits>

#include "kernels/op_testing.h"

namespace terrace {
namespace {

TEST(OpTable, IsFoundByName) {
  EXPECT_EQ(*FindOps("auto"), &CpuOps());
  EXPECT_EQ(*FindOps("cpu"), &CpuOps());
  EXPECT_EQ(*FindOps("reference"), &ReferenceOps());
}

TEST(OpTable, AnUnknownNameIsAnErrorThatSaysWhatThereIs) {
  const auto ops = FindOps("gpu");
  ASSERT_FALSE(ops.ok());
  EXPECT_EQ(ops.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Reason(ops.status()), "invalid_value");
  EXPECT_NE(Message(ops.status()).find("reference"), std::string::npos);
}

TEST(OpTable, ComputeTypesAreFoundByName) {
  EXPECT_EQ(*ParseComputeType("auto"), ComputeType::kAuto);
  EXPECT_EQ(*ParseComputeType("f32"), ComputeType::kF32);
  EXPECT_EQ(Reason(ParseComputeType("f64").status()), "invalid_value");
}

TEST(OpTable, EveryProcessorHasTheGenericTable) { EXPECT_EQ(AllCpuOps().back().name, "cpu generic"); }

// A broken weight or activation must reach the sampler, which reports it, and not be rounded away on the way.
TEST_P(EveryCpu, NaNGoesThroughEveryOp) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const RandomWeights weights(DType::kF16, 3, 20, /*seed=*/1);
  std::vector<float> x(20, 1), out(20);
  x[18] = nan;
  const PackedWeights packed(ops(), weights.matrix, pool_);
  const GemmPart part{.weights = packed.weights, .out = out.data()};
  ops().gemm({.x = x.data(), .tokens = 1, .parts = {&part, 1}}, pool_);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(std::isnan(out[i]));
  // The norm and the gate: gemm_fused_test.cc. Attention: paged_attention_test.cc, for every KV dtype. Norms
  // of heads: rope_kv_test.cc. add_norm and cap_logits: their tests.
}

TEST_P(EveryCpu, NoTokensAreNoWork) {
  const RandomWeights weights(DType::kF16, 3, 20, /*seed=*/1);
  std::vector<float> x(20, 1), out(20, 2);
  const PackedWeights packed(ops(), weights.matrix, pool_);
  const GemmPart part{.weights = packed.weights, .out = out.data()};
  ops().gemm({.x = x.data(), .tokens = 0, .parts = {&part, 1}}, pool_);
  ops().embed({.table = weights.matrix, .out = out.data()}, pool_);
  RopeKvArgs rope;
  rope.q = rope.k = rope.v = out.data();
  ops().rope_kv(rope, pool_);
  PagedAttentionArgs attention;
  attention.batch.kv_heads = attention.heads = 2;
  attention.out = out.data();
  ops().paged_attention(attention, pool_);
  ops().add_norm({.x = x.data(), .norm = x.data(), .hidden = out.data(), .width = 20}, pool_);
  ops().cap_logits({.logits = out.data(), .cap = 1}, pool_);
  EXPECT_EQ(out, std::vector<float>(20, 2));
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
