#include "tools/report/speed_meter.h"

#include <functional>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::HasSubstr;

SpeedOptions Options() {
  SpeedOptions options;
  options.engine.model = "models/terrace-demo-nano";
  options.engine.threads = 1;
  options.engine.device = "cpu";
  options.prompts = {{5, 6, 7, 8}, {9, 10, 11}, {12, 13}};
  options.batches = {1, 3};
  options.answer_tokens = 8;
  options.least_rounds = 2;
  options.least_seconds = 0;
  return options;
}

TEST(MeasureSpeed, DescribesTheModelAndEachBatch) {
  const auto row = MeasureSpeed(Options());
  ASSERT_TRUE(row.ok()) << row.status();
  ASSERT_EQ(row->speeds.size(), 2u);
  EXPECT_EQ(row->speeds[0].batch, 1u);
  EXPECT_EQ(row->speeds[1].batch, 3u);
  for (const BatchSpeed& speed : row->speeds) {
    EXPECT_GT(speed.prefill_tokens_per_second, 0);
    EXPECT_GT(speed.decode_tokens_per_second, 0);
    EXPECT_FALSE(speed.acceptance.has_value()) << "there is no drafter";
  }
  EXPECT_EQ(row->kv_dtype, "f32");
  EXPECT_EQ(row->kv_bytes_per_token, 2u * 3 * 64 * 4)
      << "keys and values, layers, width of the KV heads, f32";
  EXPECT_GE(row->weight_bytes, 262'592u);
  EXPECT_EQ(row->model_digest.size(), 32u);
  EXPECT_EQ(row->drafter, "none");
}

TEST(MeasureSpeed, ADrafterTakesMemoryAndIsMeasured) {
  SpeedOptions options = Options();
  options.answer_tokens =
      64;  // a step gives several: of a few, an answer ends while another's prompt is read
  const auto plain = MeasureSpeed(options);
  options.engine.speculation.drafter = "model";
  options.engine.speculation.model = options.engine.model;
  options.engine.speculation.adapts = false;
  const auto drafted = MeasureSpeed(options);
  ASSERT_TRUE(plain.ok() && drafted.ok()) << drafted.status();
  EXPECT_EQ(drafted->drafter, "model");
  EXPECT_EQ(plain->draft_model_digest, "");
  EXPECT_EQ(drafted->draft_model_digest, plain->model_digest);
  EXPECT_EQ(drafted->kv_bytes_per_token, 2 * plain->kv_bytes_per_token);
  EXPECT_GT(drafted->weight_bytes, plain->weight_bytes);
  for (const BatchSpeed& speed : drafted->speeds) EXPECT_EQ(speed.acceptance, 1) << "it drafts for itself";
}

TEST(MeasureSpeed, SmallerKeysTakeLessMemory) {
  SpeedOptions options = Options();
  options.engine.kv_dtype = "int8";
  const auto row = MeasureSpeed(options);
  ASSERT_TRUE(row.ok()) << row.status();
  EXPECT_EQ(row->kv_bytes_per_token, 2u * 3 * (64 + 2 * 4)) << "with a scale for each of two heads";
}

TEST(MeasureSpeed, NamesWhatCannotBeMeasured) {
  const struct {
    std::function<void(SpeedOptions&)> change;
    const char* error;
    int exit_code;
  } cases[] = {
      {[](SpeedOptions& options) { options.batches = {}; }, "no batch", kExitUsage},
      {[](SpeedOptions& options) {
         options.batches = {1, 257};
       },
       "257", kExitUsage},
      {[](SpeedOptions& options) { options.batches = {0}; }, "batch of 0", kExitUsage},
      {[](SpeedOptions& options) { options.answer_tokens = 1; }, "at least 2", kExitUsage},
      {[](SpeedOptions& options) { options.prompts = {}; }, "no prompt", kExitUsage},
      {[](SpeedOptions& options) { options.answer_tokens = 510; }, "context of 512", kExitUsage},
      {[](SpeedOptions& options) { options.engine.model = "/absent"; }, "/absent", kExitNoInput},
  };
  for (const auto& each : cases) {
    SpeedOptions options = Options();
    each.change(options);
    const Status status = MeasureSpeed(options).status();
    EXPECT_EQ(ExitCodeFor(status), each.exit_code) << status;
    EXPECT_THAT(Message(status), HasSubstr(each.error));
  }
}

TEST(MedianSpeeds, AreOfEachBatchAndQuantityAlone) {
  const auto speed = [](double prefill, double decode, std::optional<double> acceptance) {
    return BatchSpeed{.batch = 1,
                      .prefill_tokens_per_second = prefill,
                      .decode_tokens_per_second = decode,
                      .acceptance = acceptance};
  };
  BatchSpeed wide = speed(100, 7, {});
  wide.batch = 16;
  const std::vector<BatchSpeed> measured[] = {
      {speed(1, 30, {}), wide}, {speed(2, 10, 0.5), wide}, {speed(90, 20, 0.5), wide}};
  const std::vector<BatchSpeed> medians = MedianSpeeds(measured);
  ASSERT_EQ(medians.size(), 2u);
  EXPECT_EQ(medians[0].prefill_tokens_per_second, 2);
  EXPECT_EQ(medians[0].decode_tokens_per_second, 20);
  EXPECT_EQ(medians[0].acceptance, 0.5);
  EXPECT_EQ(medians[1].batch, 16u);
  EXPECT_EQ(medians[1].prefill_tokens_per_second, 100);
  EXPECT_EQ(medians[1].acceptance, std::nullopt);
}

TEST(MeasureSpeed, AnInterruptionEndsIt) {
  SpeedOptions options = Options();
  options.least_seconds = 3600;
  int asked = 0;
  options.engine.is_cancelled = [&asked] { return ++asked > 100; };
  EXPECT_EQ(MeasureSpeed(options).status().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace terrace
