// A model on several ranks, each a thread with its part of it, over NCCL for one rank, and for several over
// same_device_nccl.h on one device: the logits are those of the whole model. What NCCL does between devices
// is in nccl_gpu_test.cc.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/gpu/same_device_nccl.h"
#include "worker/cuda/cuda_nccl_device.h"
#include "worker/cuda/cuda_transformer.h"
#include "worker/engine/device_shard.h"
#include "worker/model/model_testing.h"
#include "worker/parallel/local_communicator.h"

namespace terrace {
namespace {

constexpr Duration kGroupTimeout = std::chrono::seconds(120);
constexpr uint32_t kPoolBlocks = 64, kTokensOfBlock = 16;
constexpr DeviceLimits kLimits = {.max_sequences = 4, .max_step_tokens = 1024, .context_length = 512};
// golden_test.cc: one source of bf16 rounding moves a log-probability by up to so much. Sums in another order
// move what is rounded next.
constexpr double kMostMoved = 40 * 0x1p-8;

// A whole model, or one rank's part of it with its ties to the others.
struct Part {
  Part(const ModelConfig& config, const WeightSource& source, bool is_invariant, NcclApi nccl = {},
       std::unique_ptr<Communicator> control = nullptr) {
    ThreadPool pool(2);
    const bool is_rank = control != nullptr;
    ShardPlan plan;
    if (is_rank) {
      auto planned = PlanDeviceShard(config, source, {.rank = control->rank(), .ranks = control->ranks()});
      CHECK(planned.ok(), Message(planned.status()));
      plan = *std::move(planned);
    }
    auto loaded = LoadCudaWeights({.config = &config,
                                   .weights = &source,
                                   .pool = &pool,
                                   .is_invariant = is_invariant,
                                   .shard = is_rank ? &plan : nullptr});
    CHECK(loaded.ok(), Message(loaded.status()));
    weights = *std::move(loaded);
    const ModelConfig own = is_rank ? ConfigOfRank(config, plan) : config;
    if (is_rank) {
      auto device = OpenCudaNcclDevice(0);
      CHECK(device.ok(), Message(device.status()));
      auto connected = ConnectNccl(
          {.nccl = nccl,
           .control = std::move(control),
           .device = *std::move(device),
           .max_tree_sum_bytes = size_t{kLimits.max_step_tokens} * config.hidden_size * sizeof(float)});
      CHECK(connected.ok(), Message(connected.status()));
      group = *std::move(connected);
    }
    auto made = CudaTransformer::Create(own, weights,
                                        {.layers = own.layers,
                                         .kv_heads = own.kv_heads,
                                         .head_dim = own.head_dim,
                                         .block_tokens = kTokensOfBlock,
                                         .blocks = kPoolBlocks,
                                         .dtype = KvDType::kBF16},
                                        kLimits, is_invariant, {}, group.get());
    CHECK(made.ok(), Message(made.status()));
    transformer = *std::move(made);
  }

  CudaWeights weights;
  std::unique_ptr<NcclCommunicator> group;
  std::unique_ptr<CudaTransformer> transformer;  // borrows both
};

// What is there to see of one rank, or of the whole model: of those without logits nothing.
struct Seen {
  std::vector<float> logits;
  std::vector<int32_t> tokens;
};

// Two prompts with the logits of all positions, more than are made at a time, then single tokens of both
// beside each other, greedily chosen: twice, as kernels are timed when a shape comes again.
Seen Observe(CudaTransformer& model, uint32_t vocab) {
  constexpr uint32_t kCounts[] = {300, 270};
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::vector<BlockId>> blocks;
  Batch batch;
  for (uint32_t i = 0; i < 2; ++i) {
    prompts.push_back(RandomTokens(kCounts[i], vocab, /*seed=*/i));
    blocks.emplace_back(kPoolBlocks / 2);
    std::iota(blocks.back().begin(), blocks.back().end(), static_cast<BlockId>(i * kPoolBlocks / 2));
  }
  for (uint32_t i = 0; i < 2; ++i)
    batch.sequences.push_back({.tokens = prompts[i], .blocks = blocks[i], .logits = kCounts[i]});
  const Status queued = model.Forward(batch);
  CHECK(queued.ok(), Message(queued));
  Seen seen;
  if (model.has_logits()) seen.logits = model.Logits(kCounts[0] + kCounts[1]).value();
  for (uint32_t step = 0; step < 6; ++step) {
    const std::vector<int32_t> next = {static_cast<int32_t>(step), static_cast<int32_t>(step + 7)};
    Batch decode;
    for (uint32_t i = 0; i < 2; ++i) {
      decode.sequences.push_back({.tokens = std::span(next).subspan(i, 1),
                                  .first_position = kCounts[i] + step,
                                  .blocks = blocks[i],
                                  .logits = 1});
    }
    const std::vector<GpuSampleRow> rows(2);
    const CudaTransformer::Choice choice{.rows = rows, .adjustments = {}, .wants_logits = true};
    const Status decoded = model.Forward(decode, model.has_logits() ? &choice : nullptr);
    CHECK(decoded.ok(), Message(decoded));
    if (!model.has_logits()) continue;
    const std::span<const GpuSampleResult> results = model.Results().value();
    for (const GpuSampleResult& result : results) seen.tokens.push_back(result.token);
    const std::vector<float> logits = model.Logits(2).value();
    seen.logits.insert(seen.logits.end(), logits.begin(), logits.end());
  }
  return seen;
}

// What rank 0 of `ranks` sees.
Seen RunGroup(const ModelConfig& config, const WeightSource& source, bool is_invariant, uint32_t ranks,
              const NcclApi& nccl) {
  auto controls = MakeLocalCommunicators(ranks, kGroupTimeout);
  Seen leader;
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      const Part part(config, source, is_invariant, nccl, std::move(controls[rank]));
      Seen seen = Observe(*part.transformer, config.vocab_size);
      if (rank == 0) leader = std::move(seen);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return leader;
}

void ExpectNear(const Seen& got, const Seen& want, size_t vocab) {
  ASSERT_EQ(got.logits.size(), want.logits.size());
  ASSERT_EQ(got.tokens.size(), want.tokens.size());
  double worst = 0;
  for (size_t i = 0; i < want.logits.size(); i += vocab) {
    const auto got_row = Logprobs(std::span(got.logits).subspan(i, vocab));
    const auto want_row = Logprobs(std::span(want.logits).subspan(i, vocab));
    const auto best =
        static_cast<size_t>(std::max_element(want_row.begin(), want_row.end()) - want_row.begin());
    ASSERT_TRUE(std::isfinite(got_row[best])) << "row " << i / vocab;
    worst = std::max(worst, std::abs(got_row[best] - want_row[best]));
  }
  std::printf("worst logprob %.5f\n", worst);
  EXPECT_LT(worst, kMostMoved);
  // The tokens are those of its own logits.
  const size_t rows = got.logits.size() / vocab;
  for (size_t i = 0; i < got.tokens.size(); ++i) {
    const auto row = std::span(got.logits).subspan((rows - got.tokens.size() + i) * vocab, vocab);
    EXPECT_EQ(got.tokens[i], std::max_element(row.begin(), row.end()) - row.begin());
  }
}

TEST(RankGroup, AGroupOfOneRankOverNcclHasTheBitsOfTheWholeModel) {
  const auto nccl = LoadNccl();
  if (!nccl.ok()) GTEST_SKIP() << "not run: " << nccl.status();
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-base"));
  const Part whole(files.config, *files.weights, /*is_invariant=*/true);
  const Seen want = Observe(*whole.transformer, files.config.vocab_size);
  const Seen got = RunGroup(files.config, *files.weights, /*is_invariant=*/true, 1, *nccl);
  EXPECT_EQ(got.logits, want.logits);
  EXPECT_EQ(got.tokens, want.tokens);
}

TEST(RankGroup, RanksHaveTheLogitsOfTheWholeModel) {
  const ModelFiles files = OpenTestModel(DemoFolder("terrace-demo-base"));
  for (const bool is_invariant : {false, true}) {
    const Part whole(files.config, *files.weights, is_invariant);
    const Seen want = Observe(*whole.transformer, files.config.vocab_size);
    for (const uint32_t ranks : {1u, 2u, 4u}) {
      SCOPED_TRACE(Concat(ranks, " ranks", is_invariant ? ", invariant" : ""));
      const Seen got = RunGroup(files.config, *files.weights, is_invariant, ranks, SameDeviceNccl());
      ExpectNear(got, want, files.config.vocab_size);
    }
  }
}

// Of every format, with a feed-forward width of five blocks of 256 and an output matrix that is the
// embedding.
TEST(RankGroup, RanksHaveTheLogitsOfTheWholeModelInEveryFormat) {
  ModelConfig config = RandomModel::SmallConfig(/*vocab_size=*/128);
  config.head_dim = 128;
  config.ffn_size = 5 * 256;
  for (const DTypeInfo& info : kDTypes) {
    SCOPED_TRACE(info.name);
    const RandomModel model(info.dtype, /*seed=*/9, config);
    const Part whole(config, model, /*is_invariant=*/false);
    const Seen want = Observe(*whole.transformer, config.vocab_size);
    ExpectNear(RunGroup(config, model, /*is_invariant=*/false, 2, SameDeviceNccl()), want, config.vocab_size);
  }
}

}  // namespace
}  // namespace terrace
