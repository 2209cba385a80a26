// A model on several ranks, each a thread of the test, for comparisons with one rank.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "worker/model/model_testing.h"
#include "worker/parallel/local_communicator.h"

namespace terrace {

inline constexpr Duration kLong = std::chrono::seconds(120);  // no rank misses it
inline constexpr uint32_t kBlocks = 16;                       // of 16 tokens

// How a model is run.
struct Split {
  const ModelConfig& config;
  const WeightSource& weights;
  uint32_t ranks = 1, virtual_shards = 0;
  ComputeType compute = ComputeType::kAuto;
  KvDType kv_dtype = KvDType::kF32;
  size_t threads = 1;
  uint32_t stages = 1;  // that the ranks form
};

// One rank's model and KV pool.
struct ModelRank {
  ModelRank(const Split& split, Communicator* communicator)
      : pool(std::make_unique<ThreadPool>(split.threads)) {
    auto loaded = Transformer::Load(split.config, split.weights, CpuOps(), *pool,
                                    {.compute = split.compute,
                                     .virtual_shards = split.virtual_shards,
                                     .communicator = communicator,
                                     .stages = split.stages});
    CHECK(loaded.ok(), Message(loaded.status()));
    transformer = *std::move(loaded);
    auto created = KvPool::Create({.layers = static_cast<uint32_t>(transformer->plan().layers.size()),
                                   .kv_heads = static_cast<uint32_t>(transformer->plan().kv_heads.size()),
                                   .head_dim = split.config.head_dim,
                                   .blocks = kBlocks,
                                   .dtype = split.kv_dtype});
    CHECK(created.ok(), Message(created.status()));
    kv = *std::move(created);
  }

  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Transformer> transformer;
  std::unique_ptr<KvPool> kv;
};

// Logits of all positions of two sequences: a prompt in two parts, then token by token beside another one.
inline std::vector<float> RunSteps(ModelRank& rank, const std::vector<int32_t>& tokens) {
  const std::vector<BlockId> others = {0};
  std::vector<BlockId> blocks;
  for (BlockId block = kBlocks - 1; block > 0; --block) blocks.push_back(block);
  std::vector<float> out;
  const auto forward = [&](const Batch& batch) {
    const auto logits = rank.transformer->Forward(batch, *rank.kv);
    CHECK(logits.ok(), Message(logits.status()));
    out.insert(out.end(), logits->begin(), logits->end());
  };
  const std::span<const int32_t> all = tokens;
  const size_t half = all.size() / 2, prompt = all.size() - 3;
  forward({.sequences = {{.tokens = all.first(half), .blocks = blocks, .logits = 0}}});
  forward({.sequences = {{.tokens = all.subspan(half, prompt - half),
                          .first_position = static_cast<uint32_t>(half),
                          .blocks = blocks,
                          .logits = static_cast<uint32_t>(prompt - half)}}});
  for (size_t i = prompt; i < all.size(); ++i) {
    const auto position = static_cast<uint32_t>(i), other = static_cast<uint32_t>(i - prompt);
    forward({.sequences = {
                 {.tokens = all.subspan(i, 1), .first_position = position, .blocks = blocks, .logits = 1},
                 {.tokens = all.subspan(i, 1), .first_position = other, .blocks = others, .logits = 1}}});
  }
  return out;
}

// What `run` gives on rank 0; it runs on every rank, and gives nothing on the others.
inline std::vector<float> LogitsOf(const Split& split,
                                   const std::function<std::vector<float>(ModelRank&)>& run) {
  if (split.ranks == 1) {
    ModelRank alone(split, nullptr);
    return run(alone);
  }
  auto group = MakeLocalCommunicators(split.ranks, kLong);
  std::vector<std::vector<float>> logits(split.ranks);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < split.ranks; ++i) {
    threads.emplace_back([&, i] {
      ModelRank rank(split, group[i].get());
      logits[i] = run(rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint32_t i = 1; i < split.ranks; ++i) EXPECT_TRUE(logits[i].empty()) << "rank " << i;
  return logits[0];
}
inline std::vector<float> LogitsOf(const Split& split, const std::vector<int32_t>& tokens) {
  return LogitsOf(split, [&](ModelRank& rank) { return RunSteps(rank, tokens); });
}

}  // namespace terrace
