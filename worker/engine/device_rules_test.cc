#include "worker/engine/device_rules.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/sample/sample_gpu.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

// The rest of the rules, in the words of their refusals: tools/plan/device_fit_test.cc.
TEST(DeviceRules, AVocabularyMayBeAnyNumberOfTokens) {
  for (const uint32_t vocab_size : {1u, 100u, 32'000u, 32'001u, 50'257u, kGpuMostSampleVocab})
    EXPECT_EQ(CheckDeviceModel(RandomModel::SmallConfig(vocab_size)), Status()) << vocab_size;
  const Status refused = CheckDeviceModel(RandomModel::SmallConfig(kGpuMostSampleVocab + 1));
  EXPECT_EQ(refused.code(), StatusCode::kUnimplemented);
  EXPECT_EQ(Reason(refused), "unsupported_device");
  EXPECT_THAT(Message(refused), HasSubstr("a vocabulary of 524289; GPU workers take up to 524288"));
}

}  // namespace
}  // namespace terrace
