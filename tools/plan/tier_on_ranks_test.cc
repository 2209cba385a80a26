#include "tools/plan/tier_on_ranks.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::Contains;
using testing::HasSubstr;

ProbedEngine Probed(const std::string& device) {
  const StepSample samples[] = {{.work = {.decode_tokens = 1}, .seconds = 0.01},
                                {.work = {.prefill_tokens = 256}, .seconds = 0.1}};
  ProbedEngine probed{.cost = StepCost::Fit(samples).value()};
  probed.engine.device = device;
  probed.engine.kv_dtype = "f32";
  probed.engine.weight_bytes = 1'000'000;
  return probed;
}

ModelShape Shape() {
  ModelConfig config;
  config.family = "llama";
  config.vocab_size = 512;
  config.context_length = 512;
  config.hidden_size = 256;
  config.layers = 2;
  config.heads = 8;
  config.kv_heads = 2;
  config.head_dim = 32;
  config.ffn_size = 1024;
  return ShapeOf(config, DType::kF16).value();
}

TEST(PutOnRanks, EachRankHasItsShareAndTheStepItsSums) {
  const ProbedEngine alone = Probed("cpu avx512");
  const LinkCost link{.round_seconds = 1e-4, .seconds_per_byte = 1e-9};
  const TierOnRanks one = PutOnRanks(alone, Shape(), 1, link, 8).value();
  EXPECT_EQ(one.weight_bytes, 1'000'000u);
  EXPECT_EQ(one.kv_bytes_per_token, 2u * 2 * 2 * 32 * 4);
  EXPECT_EQ(one.cost.curve(), alone.cost.curve());
  EXPECT_TRUE(one.reasons_against.empty());

  const TierOnRanks two = PutOnRanks(alone, Shape(), 2, link, 8).value();
  EXPECT_EQ(two.weight_bytes, 500'000u);
  EXPECT_EQ(two.kv_bytes_per_token * 2, one.kv_bytes_per_token);
  EXPECT_GT(two.cost.Seconds({.decode_tokens = 1}), one.cost.Seconds({.decode_tokens = 1}));
  EXPECT_THAT(two.reasons_against, Contains(HasSubstr("what 2 ranks tell each other")));
  EXPECT_THAT(two.reasons_against, Contains(HasSubstr("not verified: ")));

  const TierOnRanks four = PutOnRanks(alone, Shape(), 4, link, 8).value();
  EXPECT_GT(four.weight_bytes, 250'000u) << "a KV head is on two ranks";
  EXPECT_LT(four.weight_bytes, 300'000u);
  EXPECT_EQ(four.kv_bytes_per_token, two.kv_bytes_per_token);
}

TEST(PutOnRanks, SaysWhatCannotBe) {
  const Status too_many = PutOnRanks(Probed("cpu avx2"), Shape(), 16, {}, 8).status();
  EXPECT_EQ(Reason(too_many), "cannot_shard") << too_many;
  const Status on_device = PutOnRanks(Probed("cuda NVIDIA H100"), Shape(), 2, {}, 8).status();
  EXPECT_EQ(on_device.code(), StatusCode::kUnimplemented) << on_device;
  EXPECT_THAT(Message(on_device), HasSubstr("cuda NVIDIA H100"));
}

}  // namespace
}  // namespace terrace
