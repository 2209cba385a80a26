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
  std::vector<float> x(20, 1), ones(20, 1), out(20);
  x[18] = nan;
  const PackedWeights packed(ops(), weights.matrix, pool_);
  const GemmPart part{.weights = packed.weights, .out = out.data()};
  ops().gemm({.x = x.data(), .tokens = 1, .parts = {&part, 1}}, pool_);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(std::isnan(out[i]));
  ops().rms_norm(
      {.x = x.data(), .weight = ones.data(), .out = out.data(), .tokens = 1, .width = 20, .epsilon = 1e-5f},
      pool_);
  for (const float value : out) EXPECT_TRUE(std::isnan(value));
  ops().silu_mul({.gate = x.data(), .up = ones.data(), .out = out.data(), .count = 20}, pool_);
  EXPECT_TRUE(std::isnan(out[18]));
  // Attention: paged_attention_test.cc, for every dtype of the KV cache.
}

TEST_P(EveryCpu, NoTokensAreNoWork) {
  const RandomWeights weights(DType::kF16, 3, 20, /*seed=*/1);
  std::vector<float> x(20, 1), out(20, 2);
  const PackedWeights packed(ops(), weights.matrix, pool_);
  const GemmPart part{.weights = packed.weights, .out = out.data()};
  ops().gemm({.x = x.data(), .tokens = 0, .parts = {&part, 1}}, pool_);
  ops().rms_norm(
      {.x = x.data(), .weight = x.data(), .out = out.data(), .tokens = 0, .width = 20, .epsilon = 1e-5f},
      pool_);
  ops().silu_mul({.gate = x.data(), .up = x.data(), .out = out.data(), .count = 0}, pool_);
  PagedAttentionArgs attention;
  attention.batch.kv_heads = attention.heads = 2;
  attention.out = out.data();
  ops().paged_attention(attention, pool_);
  EXPECT_EQ(out, std::vector<float>(20, 2));
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
