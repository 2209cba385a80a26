// The models' answers against those of an independent implementation (PyTorch, f32, the same F16 weights).
#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

// Both sides keep F16 weights exactly and compute in f32; they differ in the order of their sums and in the
// RoPE angles, which the reference rounds to f32 (up to 3e-5 rad at position 500). Measured over all
// rows: 2.3e-5 at most. 2e-3 leaves room for other processors and is a tenth of the smallest margin between
// the two best tokens of any golden step (0.0215), so that equal tokens follow.
constexpr double kLogprobTolerance = 2e-3;

void ExpectGolden(const std::string& path, const std::string& model, const OpTable& ops, size_t most_rows) {
  const ModelFiles files = OpenTestModel(path);
  TestModel test_model(files.config, *files.weights, ops, /*threads=*/2);
  double worst = 0;
  size_t rows = 0;
  for (const GoldenRow& row : GoldenRows(model)) {
    if (rows++ == most_rows) break;
    SCOPED_TRACE(testing::Message() << path << " with " << ops.name << ", row " << rows);
    std::vector<float> first_logits;
    EXPECT_EQ(GreedyTokens(test_model, row.prompt, row.answer.size(), first_logits), row.answer);
    const auto logprobs = Logprobs(first_logits);
    for (const auto& [token, want] : row.top_logprobs) {
      EXPECT_NEAR(logprobs[static_cast<size_t>(token)], want, kLogprobTolerance) << "token " << token;
      worst = std::max(worst, std::abs(logprobs[static_cast<size_t>(token)] - want));
    }
  }
  testing::Test::RecordProperty("worst logprob difference", std::to_string(worst));
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, EveryRowFromSafetensors) {
  ExpectGolden(DemoFolder(GetParam()), GetParam(), CpuOps(), SIZE_MAX);
}

TEST_P(Golden, EveryRowFromGguf) { ExpectGolden(DemoGguf(GetParam()), GetParam(), CpuOps(), SIZE_MAX); }

TEST_P(Golden, SomeRowsWithEveryBackend) {
  ExpectGolden(DemoFolder(GetParam()), GetParam(), ReferenceOps(), 1);
  ExpectGolden(DemoGguf(GetParam()), GetParam(), ReferenceOps(), 1);
  for (const OpTable& ops : AllCpuOps()) ExpectGolden(DemoFolder(GetParam()), GetParam(), ops, 3);
}

INSTANTIATE_TEST_SUITE_P(All, Golden, testing::ValuesIn(kDemoModels), [](const auto& param_info) {
  std::string name = param_info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace terrace
