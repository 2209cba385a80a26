// The engine on a CUDA device: scheduler, KV pool, transformer and choice of tokens together.
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/exit_code.h"
#include "gtest/gtest.h"
#include "kernels/sample/cap_logits_cuda.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/open_engine.h"
#include "worker/formats/model_files.h"

extern "C" const terrace::DeviceBackend* terrace_device_backend();

namespace terrace {
namespace {

using Answer = CollectingSink::Answer;

constexpr char kModel[] = "models/terrace-demo-nano";
constexpr int32_t kVocab = 1024;

StatusOr<const DeviceBackend*> LinkedBackend() {
  const DeviceBackend* backend = terrace_device_backend();
  RETURN_IF_ERROR(backend->probe());
  return backend;
}

OpenedEngine Open(OpenEngineOptions options) {
  options.device = "cuda";
  options.numerics = "invariant";
  options.find_device = LinkedBackend;
  auto opened = OpenEngine(options);
  CHECK(opened.ok(), Message(opened.status()));
  return *std::move(opened);
}

// A request of any kind: greedy or sampled with every parameter, scored or not.
SequenceSpec RandomSpec(std::mt19937& random) {
  const auto draw = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random);
  };
  SequenceSpec spec;
  const int32_t shared = draw(0, 3);  // prompts that begin alike meet in the prefix cache
  for (int32_t i = draw(1, 60); i > 0; --i) spec.prompt.push_back((i * 37 + shared * 101) % kVocab);
  for (int32_t i = draw(1, 30); i > 0; --i) spec.prompt.push_back(draw(0, kVocab - 1));
  spec.max_tokens = static_cast<uint32_t>(draw(1, 200));  // more than the pool has blocks for
  spec.ignore_eos = draw(0, 1) == 1;
  spec.top_logprobs = static_cast<uint32_t>(draw(0, 3));
  spec.signals = draw(0, 1) == 1;
  spec.score_prompt = draw(0, 4) == 0;
  SamplingParams& sampling = spec.sampling;
  sampling.temperature = static_cast<float>(draw(0, 2)) * 0.5f;
  sampling.seed = random();
  if (draw(0, 1) == 1) sampling.top_k = draw(1, 50);
  if (draw(0, 1) == 1) sampling.top_p = 0.9f;
  if (draw(0, 2) == 0) sampling.min_p = 0.02f;
  if (draw(0, 2) == 0) sampling.repetition_penalty = 1.2f;
  if (draw(0, 2) == 0) sampling.frequency_penalty = 0.5f;
  if (draw(0, 2) == 0) sampling.logit_bias = {{draw(0, 500), 3.0f}, {draw(501, kVocab - 1), -5.0f}};
  return spec;
}

std::shared_ptr<CollectingSink> Submit(OpenedEngine& opened, SequenceSpec spec) {
  auto sink = std::make_shared<CollectingSink>();
  EXPECT_EQ(opened.engine->Submit(std::move(spec), sink), Status());
  return sink;
}

void ExpectSameBits(const std::vector<SampledToken>& a, const std::vector<SampledToken>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].token, b[i].token) << "token " << i;
    ASSERT_EQ(a[i].logprob, b[i].logprob) << "token " << i;
    ASSERT_EQ(a[i].margin, b[i].margin) << "token " << i;
    ASSERT_EQ(a[i].entropy, b[i].entropy) << "token " << i;
    ASSERT_EQ(a[i].top.size(), b[i].top.size()) << "token " << i;
    for (size_t j = 0; j < a[i].top.size(); ++j) {
      ASSERT_EQ(a[i].top[j].token, b[i].top[j].token);
      ASSERT_EQ(a[i].top[j].logprob, b[i].top[j].logprob);
    }
  }
}

// Alone in an engine, or among others that take its blocks, with drafts that are right, wrong or half right:
// an answer is the same to the bit.
TEST(CudaEngine, AnAnswerIsTheSameWhateverIsBesideIt) {
  std::mt19937 random(7);
  std::vector<SequenceSpec> specs;
  for (int i = 0; i < 40; ++i) specs.push_back(RandomSpec(random));
  std::vector<Answer> alone;
  {
    OpenedEngine opened =
        Open({.model = kModel, .max_sequences = 1, .max_step_tokens = 512, .prefix_cache = false});
    std::printf("%s, %s\n", opened.device.c_str(), opened.kv_arithmetic.c_str());
    for (const SequenceSpec& spec : specs) {
      alone.push_back(Submit(opened, spec)->Wait());
      ASSERT_EQ(alone.back().result.error, Status());
    }
  }
  // 40 blocks of 12 KiB: eight more than one context takes.
  OpenedEngine opened = Open({.model = kModel,
                              .max_sequences = 12,
                              .max_step_tokens = 70,
                              .kv_pool_bytes = 40 * 12288,
                              .host_swap_bytes = 16 * 12288});
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (size_t i = 0; i < specs.size(); ++i) {
    SequenceSpec spec = specs[i];
    if (i % 3 != 0) spec.draft = alone[i].ids();
    if (i % 3 == 2 && spec.draft.size() > 3) spec.draft[spec.draft.size() / 2] ^= 1;
    sinks.push_back(Submit(opened, std::move(spec)));
  }
  uint32_t preemptions = 0, accepted = 0, cached = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "request " << i);
    const Answer answer = sinks[i]->Wait();
    ASSERT_EQ(answer.result.error, Status());
    ExpectSameBits(alone[i].tokens, answer.tokens);
    ExpectSameBits(alone[i].prompt_scores, answer.prompt_scores);
    preemptions += answer.result.stats.preemptions;
    accepted += answer.result.stats.accepted_draft_tokens;
    cached += answer.result.stats.cached_tokens;
  }
  std::printf("%u preemptions, %u drafted tokens accepted, %u cached\n", preemptions, accepted, cached);
  EXPECT_GT(preemptions, 0u);
  EXPECT_GT(accepted, 0u);
  EXPECT_GT(cached, 0u);
}

// A model that drafts on the device or on the CPUs beside it, the one that answers itself or a smaller one,
// for batches and drafts of any size: the answers are those without it. Drafts are made whatever they cost.
TEST(CudaEngine, WhatAModelDraftsChangesNoBitOfAnAnswer) {
  constexpr char kSmall[] = "models/terrace-demo-small";
  std::mt19937 random(8);
  std::vector<SequenceSpec> specs;
  for (int i = 0; i < 20; ++i) {
    specs.push_back(RandomSpec(random));
    specs.back().max_tokens = 10 + specs.back().max_tokens / 3;
  }
  const struct {
    const char *model, *draft_model, *device;
    uint32_t max_tokens, max_branch_tokens = 0;
  } cases[] = {{kModel, kModel, "cuda", 8},  // 9 tokens of a sequence in a step
               {kSmall, kModel, "cuda", 4},
               {kSmall, kModel, "cuda", 20},
               {kSmall, kModel, "cuda", 4, 1},
               {kSmall, kModel, "cpu", 4}};
  std::map<std::string, std::vector<Answer>> plain;  // by model
  for (const char* model : {kModel, kSmall}) {
    OpenedEngine opened = Open({.model = model, .max_sequences = 1, .max_step_tokens = 512});
    for (const SequenceSpec& spec : specs) plain[model].push_back(Submit(opened, spec)->Wait());
  }
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << c.draft_model << " on " << c.device << " for " << c.model << ", "
                                    << c.max_tokens << " tokens");
    OpenedEngine opened = Open({.model = c.model,
                                .max_sequences = c.max_branch_tokens > 0 ? 16u : 6u,
                                .max_step_tokens = 200,
                                .speculation = {.drafter = "model",
                                                .model = c.draft_model,
                                                .device = c.device,
                                                .max_tokens = c.max_tokens,
                                                .max_branch_tokens = c.max_branch_tokens,
                                                .adapts = false}});
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (const SequenceSpec& spec : specs) sinks.push_back(Submit(opened, spec));
    uint32_t drafted = 0, accepted = 0;
    for (size_t i = 0; i < specs.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "request " << i);
      const Answer answer = sinks[i]->Wait();
      ASSERT_EQ(answer.result.error, Status());
      ExpectSameBits(plain[c.model][i].tokens, answer.tokens);
      ExpectSameBits(plain[c.model][i].prompt_scores, answer.prompt_scores);
      drafted += answer.result.stats.speculated_tokens;
      accepted += answer.result.stats.accepted_speculated_tokens;
    }
    opened.engine->Stop();
    EXPECT_EQ(opened.engine->Stats().speculation.failures, 0u);
    EXPECT_EQ(opened.engine->Stats().speculation.branch_verified > 0, c.max_branch_tokens > 0);
    std::printf("%s: %u drafted tokens, %u accepted; %s\n", opened.drafter_device.c_str(), drafted, accepted,
                opened.drafter_kv_arithmetic.c_str());
    EXPECT_GT(accepted, 0u);
    // Rounded otherwise than in the invariant mode, the same model says nearly always the same.
    if (std::string_view(c.model) == c.draft_model) {
      EXPECT_GT(2 * accepted, drafted);
    }
  }
}

// What a step of a new size takes once is no cost of steps of that size.
TEST(CudaEngine, AStepSaysWhetherItWasTheFirstOfItsKind) {
  const auto files = OpenModel(kModel);
  ASSERT_TRUE(files.ok()) << files.status();
  const auto backend = LinkedBackend();
  ASSERT_TRUE(backend.ok()) << backend.status();
  ThreadPool pool(1);
  auto model = (*backend)->load({.config = &files->config, .weights = files->weights.get(), .pool = &pool});
  ASSERT_TRUE(model.ok()) << model.status();
  const KvShape shape{.layers = files->config.layers,
                      .kv_heads = files->config.kv_heads,
                      .head_dim = files->config.head_dim,
                      .blocks = 4,
                      .dtype = KvDType::kBF16};
  auto executor = (*model)->MakeExecutor(
      shape, {.max_sequences = 2, .max_step_tokens = 64, .context_length = files->config.context_length});
  ASSERT_TRUE(executor.ok()) << executor.status();
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  const std::vector<BlockId> blocks = {0};
  const SamplingParams sampling{.temperature = 0};
  const TokenCounts counts;
  const auto is_first = [&](uint32_t proposed) {  // of a step that verifies so many
    PlannedSequence part;
    part.tokens = std::span(tokens).first(1 + proposed);
    part.blocks = blocks;
    part.sample = true;
    part.proposed = proposed;
    part.sampling = &sampling;
    part.counts = &counts;
    StepPlan plan;
    plan.sequences.push_back(part);
    const StepResult result = (*executor)->Run(plan);
    EXPECT_EQ(result.device_error, Status());
    return result.is_first_of_its_kind;
  };
  for (const uint32_t proposed : {0u, 1u, 3u}) {
    EXPECT_TRUE(is_first(proposed)) << proposed;
    EXPECT_FALSE(is_first(proposed)) << proposed;
  }
}

// A kernel reads and writes where nothing is mapped: from here on every call of this process fails.
void LoseTheDevice() {
  auto* const nowhere = reinterpret_cast<float*>(uintptr_t{4096});
  CHECK(CapLogitsCuda({.logits = nowhere, .count = 4, .cap = 1}, {.stream = nullptr, .follows = false}) ==
        cudaSuccess);
  const cudaError_t error = cudaDeviceSynchronize();
  CHECK(error == cudaErrorIllegalAddress, cudaGetErrorName(error));
}

// A worker's process, in short: it says why on stderr, and ends as the error of its answers says.
[[noreturn]] void ServeUntilTheDeviceIsLost() {
  alarm(120);  // what hangs is ended by a signal
  std::atomic<bool> is_due = false;
  bool is_lost = false;  // of the loop thread until that has ended, as is `cause`
  Status cause, ended;
  {
    OpenedEngine opened = Open({.model = kModel,
                                .max_sequences = 4,
                                .max_step_tokens = 256,
                                .host_swap_bytes = 16 * 12288,
                                .on_step =
                                    [&](const StepObservation&) {
                                      CHECK(!is_lost, "a step without a device");
                                      if (!is_due) return;
                                      LoseTheDevice();
                                      is_lost = true;
                                    },
                                .on_device_lost = [&](const Status& error) { cause = error; }});
    SequenceSpec spec;
    spec.prompt = {1, 2, 3};
    spec.max_tokens = 400;
    spec.ignore_eos = true;
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (int i = 0; i < 6; ++i) sinks.push_back(Submit(opened, spec));  // two of them wait
    is_due = true;
    for (const auto& sink : sinks) {
      ended = sink->Wait().result.error;
      CHECK(Reason(ended) == "device_lost", Message(ended));
    }
    CHECK(!sinks[0]->Wait().tokens.empty());
    opened.engine->Stop();
    CHECK(is_lost && opened.engine->Stats().is_device_lost);
    CHECK(cause == opened.engine->device_error() && Reason(cause) == "device_error");
  }
  std::fprintf(stderr, "all is destroyed: %s\n", Message(cause).c_str());
  std::exit(ExitCodeFor(ended));
}

// In a process of its own: others, such as this one, keep the device.
TEST(LostDevice, EndsEveryAnswerWithItsCauseAndTheProcessInOrder) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // the binary once more: there are threads, and CUDA
  EXPECT_EXIT(
      ServeUntilTheDeviceIsLost(), testing::ExitedWithCode(kExitUnavailable),
      "all is destroyed: worker/cuda/[a-z_]+\\.cc:[0-9]+: cuda[A-Za-z]+: .*\\(cudaErrorIllegalAddress\\)");
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
}

}  // namespace
}  // namespace terrace
