// What the tests of the model share: opened models, sequences run step by step, the reference outputs.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "worker/formats/model_files.h"
#include "worker/model/transformer.h"

namespace terrace {

inline constexpr const char* kDemoModels[] = {"terrace-demo-nano", "terrace-demo-small", "terrace-demo-base"};

// Paths of the demo models' two forms, in a test's runfiles.
std::string DemoFolder(const std::string& model);
std::string DemoGguf(const std::string& model);

// A model with threads and a KV pool of its own. CHECKs that loading succeeds.
struct TestModel {
  TestModel(const ModelConfig& config, const WeightSource& weights, const OpTable& ops, size_t threads,
            uint32_t blocks = 64, KvDType kv_dtype = KvDType::kF32, ComputeType compute = ComputeType::kAuto);
  TestModel(const ModelConfig& config, const WeightSource& weights, const OpTable& ops, size_t threads,
            const KvShape& kv_shape, ComputeType compute = ComputeType::kAuto);
  // Every value of the KV pool becomes NaN, so that reading one that was not written shows.
  void PoisonKv();

  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Transformer> transformer;
  std::unique_ptr<KvPool> kv;
};

// A source of tensors that lie in memory.
class WeightsInMemory : public WeightSource {
 public:
  explicit WeightsInMemory(std::string path, std::vector<Entry> entries = {})
      : entries_(std::move(entries)), path_(std::move(path)) {}
  WeightsInMemory(const WeightsInMemory&) = delete;  // tensors borrow
  StatusOr<TensorView> Find(std::string_view name) const override;
  const std::vector<Entry>& entries() const override { return entries_; }
  const std::string& path() const override { return path_; }

 protected:
  // The tensor becomes one of F32 with these values, which are kept here.
  void SetFloats(TensorView& tensor, std::vector<float> values);
  std::vector<Entry> entries_;  // of anything else whoever derives from this keeps the data

 private:
  std::vector<std::vector<float>> floats_;
  const std::string path_;
};

// `config` with everything that families do otherwise than Llama, in three models, as no family has all of
// it: biases; norms of heads and of sublayers, GELU, caps, scales, and windows in all layers but each second;
// and experts.
std::vector<ModelConfig> WithSwitches(const ModelConfig& config);

// A model in memory, with random matrices of one format.
class RandomModel : public WeightsInMemory {
 public:
  static ModelConfig SmallConfig(uint32_t vocab_size = 100);  // of two layers; 100: broken strips
  RandomModel(DType dtype, uint64_t seed, const ModelConfig& model_config = SmallConfig());
  ModelConfig config;

 private:
  std::vector<std::vector<std::byte>> storage_;
  std::vector<std::vector<float>> scales_;  // of INT8's rows
};

// The same model as `original`, which it borrows, with matrices whose rows have to be made.
class MadeModel : public WeightsInMemory {
 public:
  explicit MadeModel(const WeightSource& original);

 private:
  std::vector<std::unique_ptr<RowMaker>> makers_;
};

ModelFiles OpenTestModel(const std::string& path);

std::vector<int32_t> RandomTokens(size_t count, uint32_t vocab_size, uint64_t seed);

// Of a whole model, which cannot fail.
std::span<const float> Forward(TestModel& model, const Batch& batch);
// Logits of all positions of one sequence, alone and in one call: [tokens, vocab_size].
std::vector<float> SequenceLogits(TestModel& model, const std::vector<int32_t>& tokens);
// The greedy answer: prefill in one call, then token by token. `first_logits` receives those of the first
// token.
std::vector<int32_t> GreedyTokens(TestModel& model, const std::vector<int32_t>& prompt, size_t count,
                                  std::vector<float>& first_logits);
// Infinite where a value of either is not finite, or there is not one of each.
double LargestDifference(std::span<const float> a, std::span<const float> b);
// ln softmax of one row.
std::vector<double> Logprobs(std::span<const float> logits);

// A row of models/eval/golden.jsonl.
struct GoldenRow {
  std::vector<int32_t> prompt, answer;
  std::vector<std::pair<int32_t, double>> top_logprobs;  // of the first token
};
std::vector<GoldenRow> GoldenRows(const std::string& model);

}  // namespace terrace
