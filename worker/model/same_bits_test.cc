// The same-bits contract (docs/adr/0003-same-bits.md): logits of a set of sequences, computed one by one,
// hash to the same value as under any batching, chunking of prompts, placement of blocks and number of
// threads, whatever the dtype of the KV cache.
#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "base/hash.h"
#include "base/rng.h"
#include "gtest/gtest.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

constexpr uint32_t kBlocks = 96;

// Numbers of one seed, in order.
class Dice {
 public:
  explicit Dice(uint64_t seed) : seed_(seed) {}
  size_t Below(size_t count) { return RandomBits(seed_, next_++) % count; }

 private:
  const uint64_t seed_;
  uint64_t next_ = 0;
};

// Sixteen sequences; lengths around the edges of KV blocks (16), some of more than one attention span (256).
std::vector<std::vector<int32_t>> Sequences(uint32_t vocab_size) {
  Dice dice(/*seed=*/1);
  std::vector<std::vector<int32_t>> out;
  for (const size_t length : {1, 2, 15, 16, 17, 31, 33, 64, 65, 5, 48, 100, 129, 200, 257, 300}) {
    out.emplace_back(length);
    for (int32_t& token : out.back()) token = static_cast<int32_t>(dice.Below(vocab_size));
  }
  return out;
}

// Logits of every position of each sequence: the last call's for a position count.
using Logits = std::vector<std::vector<float>>;

Hash128 HashOf(const Logits& logits) {
  Hasher hasher;
  for (const auto& each : logits) {
    hasher.Add(std::string_view(reinterpret_cast<const char*>(each.data()), each.size() * sizeof(float)));
  }
  return hasher.Finish();
}

// Runs all sequences, at most `places` at a time, in random parts of random steps over randomly placed
// blocks.
Logits RunSchedule(TestModel& model, const std::vector<std::vector<int32_t>>& sequences, Dice& dice) {
  struct Running {
    size_t sequence;
    uint32_t done;
    BlockTable blocks;
  };
  model.PoisonKv();
  const size_t vocab_size = model.transformer->config().vocab_size, places = 1 + dice.Below(16);
  const size_t longest_part = size_t{1} << dice.Below(10);  // 1: token by token; 512: whole prompts
  std::vector<BlockId> free(kBlocks);
  std::iota(free.begin(), free.end(), 0);
  std::vector<size_t> waiting(sequences.size());
  std::iota(waiting.begin(), waiting.end(), 0);
  for (size_t i = waiting.size(); i > 1; --i) std::swap(waiting[i - 1], waiting[dice.Below(i)]);
  std::vector<Running> running;
  Logits logits(sequences.size());
  while (!waiting.empty() || !running.empty()) {
    while (!waiting.empty() && running.size() < places) {
      Running next{.sequence = waiting.back(), .done = 0, .blocks = {}};
      waiting.pop_back();
      for (size_t need = BlocksFor(sequences[next.sequence].size(), 16); need > 0; --need) {
        std::swap(free[dice.Below(free.size())], free.back());
        next.blocks.push_back(free.back());
        free.pop_back();
      }
      running.push_back(std::move(next));
    }
    Batch batch;
    std::vector<size_t> members;
    for (size_t i = 0; i < running.size(); ++i) {
      if (running.size() > 1 && dice.Below(4) == 0) continue;  // sits this step out
      const std::span<const int32_t> left =
          std::span(sequences[running[i].sequence]).subspan(running[i].done);
      const size_t part = std::min(left.size(), 1 + dice.Below(longest_part));
      batch.sequences.push_back({.tokens = left.first(part),
                                 .first_position = running[i].done,
                                 .blocks = running[i].blocks,
                                 .logits = static_cast<uint32_t>(part)});
      members.push_back(i);
    }
    std::span<const float> step = Forward(model, batch);
    for (size_t i = 0; i < members.size(); ++i) {
      Running& member = running[members[i]];
      const size_t size = batch.sequences[i].tokens.size() * vocab_size;
      logits[member.sequence].insert(logits[member.sequence].end(), step.begin(),
                                     step.begin() + static_cast<ptrdiff_t>(size));
      step = step.subspan(size);
      member.done += static_cast<uint32_t>(batch.sequences[i].tokens.size());
    }
    std::erase_if(running, [&](const Running& each) {
      if (each.done < sequences[each.sequence].size()) return false;
      free.insert(free.end(), each.blocks.begin(), each.blocks.end());
      return true;
    });
  }
  return logits;
}

Hash128 HashOneByOne(TestModel& model, const std::vector<std::vector<int32_t>>& sequences) {
  Logits logits;
  for (const auto& tokens : sequences) {
    model.PoisonKv();
    logits.push_back(SequenceLogits(model, tokens));
  }
  return HashOf(logits);
}

// A sanitizer sees in a few schedules what it sees in many.
bool IsSanitized() { return std::getenv("TERRACE_SCHEDULES") != nullptr; }

void ExpectOneHash(const ModelConfig& config, const WeightSource& weights, const std::string& name,
                   size_t schedules, const OpTable& ops, KvDType kv_dtype,
                   ComputeType compute = ComputeType::kAuto) {
  std::vector<TestModel> models;
  for (const size_t threads : {1, 2, 3})
    models.emplace_back(config, weights, ops, threads, kBlocks, kv_dtype, compute);
  const auto sequences = Sequences(config.vocab_size);
  const Hash128 want = HashOneByOne(models[0], sequences);
  if (IsSanitized()) schedules = std::min<size_t>(schedules, 3);
  for (uint64_t seed = 0; seed < schedules; ++seed) {
    SCOPED_TRACE(testing::Message() << name << " with " << ops.name << ", seed " << seed);
    Dice dice(seed);
    ASSERT_EQ(HashOf(RunSchedule(models[seed % models.size()], sequences, dice)).Hex(), want.Hex());
  }
}

void ExpectOneHash(const std::string& path, size_t schedules, const OpTable& ops,
                   KvDType kv_dtype = KvDType::kF32) {
  const ModelFiles files = OpenTestModel(path);
  ExpectOneHash(files.config, *files.weights, path, schedules, ops, kv_dtype);
}

TEST(SameBits, NanoUnder100Schedules) { ExpectOneHash(DemoFolder("terrace-demo-nano"), 100, CpuOps()); }

TEST(SameBits, SmallUnder25Schedules) { ExpectOneHash(DemoGguf("terrace-demo-small"), 25, CpuOps()); }

TEST(SameBits, BaseUnder10Schedules) { ExpectOneHash(DemoFolder("terrace-demo-base"), 10, CpuOps()); }

class SameBitsOfKv : public testing::TestWithParam<KvDType> {};

TEST_P(SameBitsOfKv, NanoUnder30Schedules) {
  ExpectOneHash(DemoFolder("terrace-demo-nano"), 30, CpuOps(), GetParam());
}
INSTANTIATE_TEST_SUITE_P(All, SameBitsOfKv, testing::ValuesIn(kEveryGpuKvDType),
                         [](const auto& param_info) { return std::string(KvDTypeName(param_info.param)); });

TEST(SameBits, EveryOtherCpuBackendUnder6Schedules) {
  for (const OpTable& ops : AllCpuOps().subspan(1)) {
    ExpectOneHash(DemoGguf("terrace-demo-nano"), 6, ops);
    ExpectOneHash(DemoGguf("terrace-demo-nano"), 6, ops, KvDType::kInt8);
    ExpectOneHash(DemoGguf("terrace-demo-nano"), 2, ops, KvDType::kFp8);
  }
}

class SameBitsOfWeights : public testing::TestWithParam<DTypeInfo> {};

TEST_P(SameBitsOfWeights, UnderSchedulesOfEveryBackend) {
  const RandomModel model(GetParam().dtype, /*seed=*/1);
  size_t schedules = 4;
  for (const OpTable& ops : AllCpuOps()) {
    ExpectOneHash(model.config, model, std::string(GetParam().name), schedules, ops, KvDType::kF16);
    schedules = 1;
    if (IsSanitized()) break;  // the kernels' own tests take every backend; the slowest ones minutes here
  }
  ExpectOneHash(model.config, model, std::string(GetParam().name), 1, CpuOps(), KvDType::kF16,
                ComputeType::kF32);
}
INSTANTIATE_TEST_SUITE_P(All, SameBitsOfWeights, testing::ValuesIn(kDTypes),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(SameBits, TheHashSeesOneChangedToken) {
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-nano"));
  TestModel model(files.config, *files.weights, CpuOps(), /*threads=*/1, kBlocks);
  auto sequences = Sequences(files.config.vocab_size);
  const Hash128 before = HashOneByOne(model, sequences);
  EXPECT_EQ(HashOneByOne(model, sequences), before);
  sequences.back().back() ^= 1;
  EXPECT_NE(HashOneByOne(model, sequences), before);
}

}  // namespace
}  // namespace terrace
