// The engine with the smallest demo model: golden answers and the same-bits promise through scheduler, KV
// cache, model and sampler together.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>

#include "base/hash.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/fake_device.h"
#include "worker/engine/open_engine.h"
#include "worker/formats/testing_files.h"

namespace terrace {
namespace {

using Answer = CollectingSink::Answer;

constexpr uint32_t kVocab = 1024;

struct Setting {
  uint32_t threads, max_sequences, max_step_tokens, block_tokens;
  std::string compute = "auto";
};

OpenedEngine Open(const Setting& setting, const std::string& model = "models/terrace-demo-nano") {
  auto opened = OpenEngine({.model = model,
                            .threads = setting.threads,
                            .max_sequences = setting.max_sequences,
                            .max_step_tokens = setting.max_step_tokens,
                            .block_tokens = setting.block_tokens,
                            .compute = setting.compute});
  CHECK(opened.ok(), Message(opened.status()));
  return *std::move(opened);
}

std::shared_ptr<CollectingSink> Submit(Engine& engine, SequenceSpec spec) {
  auto sink = std::make_shared<CollectingSink>();
  EXPECT_EQ(engine.Submit(std::move(spec), sink), Status());
  return sink;
}

// A request of any kind: greedy or sampled with every parameter, scored or not.
SequenceSpec RandomSpec(std::mt19937& random) {
  const auto draw = [&](uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random);
  };
  SequenceSpec spec;
  for (uint32_t i = draw(1, 120); i > 0; --i)
    spec.prompt.push_back(static_cast<int32_t>(draw(0, kVocab - 1)));
  spec.max_tokens = draw(1, 40);
  spec.ignore_eos = draw(0, 1) == 1;
  spec.top_logprobs = draw(0, 3);
  spec.score_prompt = draw(0, 3) == 0;
  SamplingParams& sampling = spec.sampling;
  sampling.temperature = static_cast<float>(draw(0, 3)) * 0.5f;
  sampling.seed = random();
  if (draw(0, 1) == 1) sampling.top_k = static_cast<int32_t>(draw(1, 50));
  if (draw(0, 1) == 1) sampling.top_p = 0.9f;
  if (draw(0, 2) == 0) sampling.min_p = 0.05f;
  if (draw(0, 2) == 0) sampling.repetition_penalty = 1.3f;
  if (draw(0, 2) == 0) sampling.presence_penalty = 0.5f;
  if (draw(0, 2) == 0) sampling.frequency_penalty = 0.5f;
  if (draw(0, 2) == 0) sampling.logit_bias = {{7, 2.0f}, {9, -3.0f}};
  return spec;
}

void AddBits(const std::vector<SampledToken>& tokens, Hasher& hasher) {
  hasher.Add(tokens.size());
  for (const SampledToken& token : tokens) {
    hasher.Add(static_cast<uint64_t>(token.token)).Add(std::bit_cast<uint32_t>(token.logprob));
    for (const TokenLogprob& top : token.top) {
      hasher.Add(static_cast<uint64_t>(top.token)).Add(std::bit_cast<uint32_t>(top.logprob));
    }
  }
}

Hash128 Bits(const std::vector<Answer>& answers) {
  Hasher hasher;
  for (const Answer& answer : answers) {
    EXPECT_EQ(answer.result.error, Status());
    AddBits(answer.tokens, hasher);
    AddBits(answer.prompt_scores, hasher);
    hasher.Add(static_cast<uint64_t>(answer.result.reason));
  }
  return hasher.Finish();
}

TEST(SameBits, GreedyAnswersAreGoldenWhileSampledOnesComeAndGo) {
  for (const char* model : {"models/terrace-demo-nano", "models/terrace-demo-nano.f16.gguf"}) {
    OpenedEngine opened =
        Open({.threads = 2, .max_sequences = 6, .max_step_tokens = 24, .block_tokens = 16, .compute = "f32"},
             model);
    std::mt19937 random(11);
    std::ifstream file("models/eval/golden.jsonl");
    int rows = 0;
    for (std::string line; std::getline(file, line);) {
      const Json row = *ParseJson(line);
      if (row["model"] != "terrace-demo-nano") continue;
      ++rows;
      SequenceSpec golden;
      golden.prompt = row["prompt_tokens"].get<std::vector<int32_t>>();
      golden.max_tokens = static_cast<uint32_t>(row["greedy_tokens"].size());
      golden.sampling.temperature = 0;
      const auto before = Submit(*opened.engine, RandomSpec(random)),
                 cancelled = Submit(*opened.engine, RandomSpec(random));
      const auto sink = Submit(*opened.engine, golden);
      const auto after = Submit(*opened.engine, RandomSpec(random));
      cancelled->Cancel();
      EXPECT_EQ(sink->Wait().ids(), row["greedy_tokens"].get<std::vector<int32_t>>())
          << model << " row " << rows;
      if (rows % 3 == 0) before->Wait();
    }
    EXPECT_GT(rows, 20);
    opened.engine->Stop();
    const EngineStats stats = opened.engine->Stats();
    EXPECT_EQ(stats.free_blocks + stats.cached_blocks, stats.total_blocks);
    EXPECT_EQ(stats.failed, 0u);
  }
}

// One value: each request alone, and all of them in any order of arrival, batch size, chunk size, block size
// and number of threads, beside others that are cancelled on the way.
TEST(SameBits, TokensAndLogprobsDependOnTheRequestAlone) {
  const uint32_t seed = 2026;
  SCOPED_TRACE(Concat("seed ", seed));
  std::mt19937 random(seed);
  std::vector<SequenceSpec> specs;
  for (int i = 0; i < 24; ++i) specs.push_back(RandomSpec(random));

  std::vector<Answer> alone;
  {
    OpenedEngine opened =
        Open({.threads = 1, .max_sequences = 1, .max_step_tokens = 512, .block_tokens = 16});
    for (const SequenceSpec& spec : specs) alone.push_back(Submit(*opened.engine, spec)->Wait());
  }
  const Hash128 want = Bits(alone);

  const Setting settings[] = {
      {.threads = 1, .max_sequences = 24, .max_step_tokens = 24, .block_tokens = 16},
      {.threads = 2, .max_sequences = 8, .max_step_tokens = 9, .block_tokens = 16},
      {.threads = 3, .max_sequences = 16, .max_step_tokens = 256, .block_tokens = 16},
      {.threads = 2, .max_sequences = 5, .max_step_tokens = 37, .block_tokens = 5},
  };
  for (const Setting& setting : settings) {
    SCOPED_TRACE(Concat("threads ", setting.threads, ", max_sequences ", setting.max_sequences,
                        ", max_step_tokens ", setting.max_step_tokens, ", block_tokens ",
                        setting.block_tokens));
    OpenedEngine opened = Open(setting);
    std::vector<size_t> order(specs.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::shuffle(order, random);
    std::vector<std::shared_ptr<CollectingSink>> sinks(specs.size());
    for (const size_t i : order) {
      sinks[i] = Submit(*opened.engine, specs[i]);
      const auto passer_by = Submit(*opened.engine, RandomSpec(random));
      if (i % 3 == 0) sinks[order[0]]->Wait();  // some of it happens while fewer are in the batch
      passer_by->Cancel();
    }
    std::vector<Answer> crowd;
    for (const auto& sink : sinks) crowd.push_back(sink->Wait());
    EXPECT_EQ(Bits(crowd).Hex(), want.Hex());
  }
}

// Prompts of which half repeat themselves, drafted for by nobody, by what came before, by the same model,
// which is right as long as nothing hides it, and by a smaller one, in chains and in trees. Models draft
// whatever it costs: what the machine takes must not decide whether there is anything to compare.
TEST(SameBits, AnswersAreTheSameWhoeverDrafts) {
  const uint32_t seed = 77;
  SCOPED_TRACE(Concat("seed ", seed));
  std::mt19937 random(seed);
  std::vector<SequenceSpec> specs;
  for (int i = 0; i < 24; ++i) {
    specs.push_back(RandomSpec(random));
    std::vector<int32_t>& prompt = specs.back().prompt;
    for (size_t at = 5; i % 2 == 0 && at < prompt.size(); ++at) prompt[at] = prompt[at - 5];
  }
  const struct {
    std::string model;
    SpeculationOptions speculation;
    uint32_t max_sequences;
  } cases[] = {
      {"nano", {.drafter = "none"}, 1},
      {"nano", {.drafter = "ngram", .min_match = 1}, 8},
      {"nano", {.drafter = "ngram", .max_branch_tokens = 3, .min_match = 1, .adapts = false}, 32},
      {"nano",
       {.drafter = "model", .model = "models/terrace-demo-nano", .max_tokens = 4, .adapts = false},
       8},
      {"nano",
       {.drafter = "model", .model = "models/terrace-demo-nano", .kv_pool_bytes = 300'000, .adapts = false},
       3},
      {"small", {.drafter = "none"}, 1},
      {"small", {.drafter = "ngram"}, 4},
      {"small", {.drafter = "model", .model = "models/terrace-demo-nano", .adapts = false}, 4},
      {"small",
       {.drafter = "model", .model = "models/terrace-demo-nano", .max_branch_tokens = 1, .adapts = false},
       32},
  };
  std::map<std::string, Hash128> wanted;  // by model
  for (const auto& c : cases) {
    SCOPED_TRACE(Concat(c.model, " with ", c.speculation.drafter));
    OpenEngineOptions options;
    options.model = "models/terrace-demo-" + c.model;
    options.threads = 2;
    options.max_sequences = c.max_sequences;
    options.max_step_tokens = 64;
    options.device = "cpu";
    options.speculation = c.speculation;
    auto opened = OpenEngine(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (const SequenceSpec& spec : specs) sinks.push_back(Submit(*opened->engine, spec));
    std::vector<Answer> answers;
    uint64_t drafted = 0;
    for (const auto& sink : sinks) {
      answers.push_back(sink->Wait());
      drafted += answers.back().result.stats.speculated_tokens;
    }
    const Hash128 bits = Bits(answers);
    EXPECT_EQ(bits.Hex(), wanted.try_emplace(c.model, bits).first->second.Hex());
    if (c.speculation.drafter == "model") {
      EXPECT_GT(drafted, 0u);
    }
    if (c.speculation.drafter == "none") {
      EXPECT_EQ(drafted, 0u);
    }
    opened->engine->Stop();
    const EngineStats stats = opened->engine->Stats();
    EXPECT_EQ(stats.free_blocks + stats.cached_blocks, stats.total_blocks);
    EXPECT_EQ(stats.speculation.failures, 0u);
    EXPECT_EQ(drafted, SpeculationStats::Sum(stats.speculation.verified) + stats.speculation.branch_verified);
    EXPECT_EQ(stats.speculation.branch_verified > 0, c.speculation.max_branch_tokens > 0);
  }
}

// A copy of the smallest demo model whose embedding of `token` is NaN; the output matrix is apart and whole.
std::string WritePoisonedModel(size_t token) {
  const std::string from = "models/terrace-demo-nano/", to = testing::TempDir() + "poisoned";
  std::filesystem::remove_all(to);
  std::filesystem::create_directories(to);
  const auto read = [](const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}) {
    WriteFile(Concat(to, "/", name), read(from + name));
  }
  Json config = *ParseJson(read(from + "config.json"));
  config["tie_word_embeddings"] = false;
  WriteFile(to + "/config.json", config.dump());

  const std::string bytes = read(from + "model.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  SafetensorsParts weights;
  weights.header = *ParseJson(bytes.substr(8, header_bytes));
  weights.data = bytes.substr(8 + header_bytes);
  const Json embedding = weights.header["model.embed_tokens.weight"];
  const auto shape = embedding["shape"].get<std::vector<uint64_t>>();
  const size_t begin = embedding["data_offsets"][0], row = shape[1] * sizeof(uint16_t);
  EXPECT_EQ(embedding["dtype"], "F16");
  weights.Add("lm_head.weight", "F16", shape, weights.data.substr(begin, shape[0] * row));
  std::memset(&weights.data[begin + token * row], 0xff, row);
  WriteFile(to + "/model.safetensors", weights.Bytes());
  return to;
}

TEST(OpenEngine, ANumericErrorIsThatOfItsRequestAlone) {
  const int32_t poison = 900;
  const std::string model = WritePoisonedModel(poison);
  std::mt19937 random(5);
  std::vector<int32_t> beginning(64);
  for (int32_t& token : beginning) token = static_cast<int32_t>(random() % poison);
  SequenceSpec good;
  good.prompt = beginning;
  good.max_tokens = 24;
  good.sampling.temperature = 0;
  good.ignore_eos = true;
  SequenceSpec bad = good;
  bad.prompt.push_back(poison);
  bad.prompt.insert(bad.prompt.end(), beginning.begin(), beginning.end());

  const Setting setting{.threads = 2, .max_sequences = 4, .max_step_tokens = 24, .block_tokens = 16};
  const Hash128 want = Bits({Submit(*Open(setting, model).engine, good)->Wait()});
  EXPECT_EQ(Bits({Submit(*Open(setting).engine, good)->Wait()}), want);

  OpenedEngine opened = Open(setting, model);
  const Answer poisoned = Submit(*opened.engine, bad)->Wait();
  EXPECT_EQ(Reason(poisoned.result.error), "numeric_error");
  EXPECT_TRUE(poisoned.tokens.empty());
  const Answer after = Submit(*opened.engine, good)->Wait();
  EXPECT_EQ(after.result.stats.cached_tokens, 0u);  // of all that the failed one computed
  EXPECT_EQ(Bits({after}), want);

  std::vector<std::shared_ptr<CollectingSink>> goods, bads;
  for (int i = 0; i < 6; ++i) {
    goods.push_back(Submit(*opened.engine, good));
    bads.push_back(Submit(*opened.engine, bad));
  }
  for (const auto& sink : bads) EXPECT_EQ(Reason(sink->Wait().result.error), "numeric_error");
  for (const auto& sink : goods) EXPECT_EQ(Bits({sink->Wait()}), want);
  opened.engine->Stop();
  const EngineStats stats = opened.engine->Stats();
  EXPECT_EQ(stats.failed, 7u);
  EXPECT_EQ(stats.free_blocks + stats.cached_blocks, stats.total_blocks);
}

TEST(OpenEngine, RefusesWhatItCannotRun) {
  EXPECT_EQ(OpenEngine({.model = "models/nothing-here"}).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(OpenEngine({.model = "models/terrace-demo-nano", .kernels = "abacus"}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(OpenEngine({.model = "models/terrace-demo-nano", .max_sequences = 8, .max_step_tokens = 7})
                .status()
                .code(),
            StatusCode::kInvalidArgument);
  const auto small = OpenEngine({.model = "models/terrace-demo-nano", .kv_pool_bytes = 1000}).status();
  EXPECT_EQ(small.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(small), "kv_pool_too_small");
  const auto swap = OpenEngine({.model = "models/terrace-demo-nano", .host_swap_bytes = 1000}).status();
  EXPECT_EQ(swap.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(swap), "kv_pool_too_small");
  EXPECT_NE(Message(swap).find("kv.host_swap_bytes is 1000"), std::string::npos) << Message(swap);
}

TEST(OpenEngine, ADraftersPoolHasRoomForABlockAndThatCanBeToldBeforeAStart) {
  OpenEngineOptions options = {.model = "models/terrace-demo-base",
                               .device = "cpu",
                               .speculation = {.drafter = "model", .model = "models/terrace-demo-nano"}};
  EXPECT_EQ(CheckDraftModel(options), Status());
  const auto nano = OpenWeights(options.speculation.model);
  ASSERT_TRUE(nano.ok()) << nano.status();
  const KvShape shape = {.layers = nano->config.layers,
                         .kv_heads = nano->config.kv_heads,
                         .head_dim = nano->config.head_dim,
                         .block_tokens = options.block_tokens,
                         .dtype = KvDType::kF32};
  options.speculation.kv_pool_bytes = shape.BlockBytes();
  EXPECT_EQ(CheckDraftModel(options), Status());
  EXPECT_TRUE(OpenEngine(options).ok());
  options.speculation.kv_pool_bytes = shape.BlockBytes() - 1;
  for (const Status& refused : {CheckDraftModel(options), OpenEngine(options).status()}) {
    EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(Reason(refused), "kv_pool_too_small");
    EXPECT_NE(Message(refused).find(Concat(shape.BlockBytes())), std::string::npos) << Message(refused);
  }
  options.speculation = {.drafter = "ngram"};
  EXPECT_EQ(CheckDraftModel(options), Status()) << "no model drafts";
}

TEST(OpenEngine, ADrafterNeedsTheTokensOfTheModelItDraftsFor) {
  const std::string other = testing::TempDir() + "other_tokens";
  std::filesystem::remove_all(other);
  std::filesystem::create_directories(other);
  TinyFolder().Write(other);
  const Status refused = OpenEngine({.model = "models/terrace-demo-nano",
                                     .device = "cpu",
                                     .speculation = {.drafter = "model", .model = other}})
                             .status();
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(Reason(refused), "tokenizer_mismatch");
  for (const std::string& path : {other, std::string("models/terrace-demo-nano")}) {
    const auto files = OpenModel(path);
    ASSERT_TRUE(files.ok()) << files.status();
    const std::string digest = HashBytes(files->text->tokenizer->Serialize()).Hex();
    EXPECT_NE(Message(refused).find(digest), std::string::npos) << Message(refused);
  }
  const Status found = CheckDraftModel({.model = "models/terrace-demo-nano",
                                        .device = "cpu",
                                        .speculation = {.drafter = "model", .model = other}});
  EXPECT_EQ(found, refused) << "what a start would say";
  const Status absent = OpenEngine({.model = "models/terrace-demo-nano",
                                    .device = "cpu",
                                    .speculation = {.drafter = "model", .model = "models/nothing-here"}})
                            .status();
  EXPECT_EQ(absent.code(), StatusCode::kNotFound);
}

TEST(OpenEngine, ADrafterMayNotTakeMoreThanThereIs) {
  for (const uint64_t bytes : {uint64_t{1000}, uint64_t{1} << 50}) {
    const Status refused = OpenEngine({.model = "models/terrace-demo-nano",
                                       .device = "cpu",
                                       .speculation = {.drafter = "model",
                                                       .model = "models/terrace-demo-nano",
                                                       .kv_pool_bytes = bytes}})
                               .status();
    EXPECT_EQ(Reason(refused), "kv_pool_too_small") << refused;
  }
}

// The answer of the smallest model through any options.
Answer AnswerOf(OpenedEngine& opened) {
  SequenceSpec spec;
  spec.prompt = {1, 2, 3};
  spec.max_tokens = 5;
  spec.ignore_eos = true;
  spec.sampling.temperature = 0;
  return Submit(*opened.engine, spec)->Wait();
}

OpenEngineOptions WithFakeDevice(const std::string& device) {
  OpenEngineOptions options;
  options.model = "models/terrace-demo-nano";
  options.threads = 1;
  options.device = device;
  options.find_device = FakeDevice::Find;
  return options;
}

TEST(OpenEngine, ADeviceRunsTheModelWithItsOwnDefaults) {
  for (const char* name : {"auto", "cuda"}) {
    FakeDevice device;
    auto opened = OpenEngine(WithFakeDevice(name));
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->device, FakeDevice::kName);
    EXPECT_EQ(opened->device_note, "");
    EXPECT_EQ(opened->numerics, "auto");
    EXPECT_EQ(opened->kv_dtype, "bf16");
    EXPECT_EQ(opened->parameters, 7u);
    EXPECT_EQ(opened->weight_bytes, 14u);
    EXPECT_EQ(opened->load_times.read, 2);  // as the device tells
    EXPECT_EQ(opened->load_times.wait, 1);
    EXPECT_GT(opened->load_times.open, 0);
    EXPECT_EQ(opened->max_sequences, 256u);
    EXPECT_EQ(opened->max_step_tokens, 8192u);
    ASSERT_EQ(device.models.size(), 1u);
    const FakeDevice::Loaded& loaded = device.models[0];
    EXPECT_EQ(loaded.limits.max_sequences, 256u);
    EXPECT_EQ(loaded.limits.max_step_tokens, 8192u);
    EXPECT_EQ(loaded.limits.context_length, 512u);
    EXPECT_EQ(loaded.shape.blocks, 256 * 512u / 16);
    EXPECT_EQ(loaded.shape.dtype, KvDType::kBF16);
    EXPECT_EQ(loaded.compute, "auto");
    EXPECT_EQ(opened->engine->scheduler_options().scope.layout, "bf16 16x3x2x32 cuda Fake 9000 auto");
    EXPECT_EQ(AnswerOf(*opened).tokens.size(), 5u);
  }
}

TEST(OpenEngine, WhatIsSetHoldsOnADeviceToo) {
  FakeDevice device;
  OpenEngineOptions options = WithFakeDevice("cuda");
  options.max_step_tokens = 100;
  options.kv_dtype = "int8";
  options.block_tokens = 32;
  options.compute = "fp8";
  options.numerics = "invariant";
  options.tuning.folder = "/var/cache/terrace";
  options.host_swap_bytes = 1 << 20;
  device.free_bytes = 1 << 20;
  const auto opened = OpenEngine(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->max_sequences, 100u);  // a step has room for every decode
  EXPECT_EQ(opened->max_step_tokens, 100u);
  ASSERT_EQ(device.models.size(), 1u);
  const FakeDevice::Loaded& loaded = device.models[0];
  EXPECT_EQ(loaded.shape.dtype, KvDType::kInt8);
  EXPECT_EQ(loaded.shape.block_tokens, 32u);
  EXPECT_EQ(loaded.shape.blocks, (1 << 20) * 95 / 100 / loaded.shape.BlockBytes());
  EXPECT_EQ(loaded.shape.host_blocks, (1 << 20) / loaded.shape.BlockBytes())
      << "it is not the device's memory";
  EXPECT_EQ(loaded.compute, "fp8");
  EXPECT_TRUE(loaded.is_invariant);
  EXPECT_EQ(loaded.tuning_folder, "/var/cache/terrace");
  EXPECT_EQ(opened->numerics, "invariant");
  EXPECT_EQ(opened->engine->scheduler_options().scope.layout, "int8 32x3x2x32 cuda Fake 9000 fp8 invariant");
}

TEST(OpenEngine, WhatADeviceCannotRunGoesToTheCpusUnlessTheDeviceWasAskedForByName) {
  const Status absent = WithReason(Unavailable("no driver"), "no_device");
  const Status unsupported = WithReason(Unimplemented("head_dim 31"), "unsupported_device");
  const struct {
    const char* name;
    Status found, loaded, executed;
    std::string compute, kv_dtype;
    StatusCode error;
    const char* note;
  } cases[] = {
      {"no device", absent, {}, {}, "auto", "auto", StatusCode::kUnavailable, "no driver"},
      {"model", {}, unsupported, {}, "auto", "auto", StatusCode::kFailedPrecondition, "head_dim 31"},
      {"shape", {}, {}, unsupported, "auto", "auto", StatusCode::kFailedPrecondition, "head_dim 31"},
      {"compute", {}, {}, {}, "f32", "auto", StatusCode::kInvalidArgument, "engine.compute: f32 is for CPUs"},
      {"KV dtype", {}, {}, {}, "auto", "f32", StatusCode::kInvalidArgument, "kv.dtype: f32 is for CPUs only"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    FakeDevice device;
    device.found = c.found;
    device.loaded = c.loaded;
    device.executed = c.executed;
    OpenEngineOptions options = WithFakeDevice("cuda");
    options.compute = c.compute;
    options.kv_dtype = c.kv_dtype;
    const Status refused = OpenEngine(options).status();
    EXPECT_EQ(refused.code(), c.error);
    EXPECT_NE(Message(refused).find(c.note), std::string::npos) << Message(refused);

    options.device = "auto";
    auto opened = OpenEngine(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_TRUE(opened->device.starts_with("cpu")) << opened->device;
    EXPECT_EQ(opened->device_note.find(c.note), 0u) << opened->device_note;
    EXPECT_EQ(opened->device_model, nullptr);
    EXPECT_EQ(opened->kv_dtype, "f32");
    EXPECT_EQ(opened->max_sequences, 16u);
    EXPECT_EQ(opened->max_step_tokens, 256u);
    EXPECT_EQ(opened->numerics, "invariant");
    EXPECT_EQ(AnswerOf(*opened).tokens.size(), 5u);
  }
}

TEST(OpenEngine, ADeviceThatIsFullOrBrokenIsAnErrorAlsoWithAuto) {
  for (const Status& error : {WithReason(ResourceExhausted("weights: 9 bytes needed"), "device_memory"),
                              WithReason(Internal("x.cc:1: cudaMemcpy: bad"), "device_error")}) {
    FakeDevice device;
    device.loaded = error;
    const Status refused = OpenEngine(WithFakeDevice("auto")).status();
    EXPECT_EQ(refused.code(), error.code());
    EXPECT_EQ(Reason(refused), Reason(error));
  }
  FakeDevice device;
  device.free_bytes = 1000;
  EXPECT_EQ(Reason(OpenEngine(WithFakeDevice("auto")).status()), "kv_pool_too_small");
}

// A model that answers and a smaller one of the same tokens that drafts for it.
OpenEngineOptions WithDraftModel(const std::string& device, const std::string& draft_device = "auto") {
  OpenEngineOptions options = WithFakeDevice(device);
  options.model = "models/terrace-demo-small";
  options.speculation = {
      .drafter = "model", .model = "models/terrace-demo-nano", .device = draft_device, .adapts = false};
  return options;
}

TEST(OpenEngine, ADeviceDraftsByWhatCameBefore) {
  FakeDevice device;
  OpenEngineOptions options = WithFakeDevice("cuda");
  options.speculation.drafter = "ngram";
  auto opened = OpenEngine(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->drafter, "ngram");
  EXPECT_EQ(opened->drafter_device, "");
  EXPECT_EQ(AnswerOf(*opened).tokens.size(), 5u);
}

// The fake executors of both say the same, so each draft is right.
TEST(OpenEngine, AModelDraftsOnTheDeviceOfTheOneThatAnswers) {
  for (const char* place : {"auto", "cuda"}) {
    FakeDevice device;
    OpenEngineOptions options = WithDraftModel("auto", place);
    options.numerics = "invariant";
    options.compute = "auto";
    options.max_sequences = 100;
    options.max_step_tokens = 120;
    auto opened = OpenEngine(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->device, FakeDevice::kName);
    EXPECT_EQ(opened->drafter, "model");
    EXPECT_EQ(opened->drafter_device, FakeDevice::kName);
    EXPECT_EQ(opened->drafter_note, "");
    EXPECT_EQ(opened->drafter_parameters, 7u);
    EXPECT_EQ(opened->pool, nullptr);
    ASSERT_EQ(device.models.size(), 2u);
    const FakeDevice::Loaded &answers = device.models[0], &drafts = device.models[1];
    EXPECT_EQ(answers.model, "terrace-demo-small");
    EXPECT_TRUE(answers.is_invariant);
    EXPECT_EQ(drafts.model, "terrace-demo-nano");
    EXPECT_FALSE(drafts.is_invariant) << "its bits decide no answer's";
    EXPECT_EQ(drafts.shape.dtype, answers.shape.dtype);
    EXPECT_EQ(drafts.shape.block_tokens, answers.shape.block_tokens);
    EXPECT_EQ(drafts.limits.max_sequences, 100u);
    EXPECT_EQ(drafts.limits.max_step_tokens, 200u) << "a pass may take two tokens of each sequence";
    EXPECT_EQ(opened->drafter_kv_bytes, drafts.shape.blocks * drafts.shape.BlockBytes());
    const Answer answer = AnswerOf(*opened);
    EXPECT_EQ(answer.result.error, Status());
    EXPECT_EQ(answer.tokens.size(), 5u);
    EXPECT_GT(answer.result.stats.accepted_speculated_tokens, 0u);
    EXPECT_EQ(answer.result.stats.accepted_speculated_tokens, answer.result.stats.speculated_tokens);
  }
}

TEST(OpenEngine, BothPoolsAndWhatStepsNeedFitTheDevice) {
  constexpr uint64_t kFree = 64 << 20, kSteps = 1 << 20;
  const struct {
    const char* name;
    uint64_t pool, draft_pool;
  } cases[] = {{"neither is set", 0, 0}, {"one is set", 40 << 20, 0}, {"both are set", 40 << 20, 22 << 20}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    FakeDevice device;
    device.free_bytes = kFree;
    device.step_bytes = kSteps;
    OpenEngineOptions options = WithDraftModel("cuda");
    options.max_sequences = 4096;  // contexts for all of them fit nowhere
    options.kv_pool_bytes = c.pool;
    options.speculation.kv_pool_bytes = c.draft_pool;
    const auto opened = OpenEngine(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_LE(opened->kv_bytes + opened->drafter_kv_bytes + 2 * kSteps, kFree);
    const KvShape &shape = device.models[0].shape, &draft_shape = device.models[1].shape;
    const uint64_t left = kFree - 2 * kSteps;
    const uint64_t draft_pool = c.draft_pool > 0 ? c.draft_pool : (left - c.pool) / 8;
    EXPECT_EQ(draft_shape.blocks, draft_pool / draft_shape.BlockBytes());
    const uint64_t pool = c.pool > 0 ? c.pool : (left - opened->drafter_kv_bytes) * 95 / 100;
    EXPECT_EQ(shape.blocks, pool / shape.BlockBytes());
    EXPECT_NE(opened->drafter_kv_arithmetic.find(Concat(left + kSteps, " of the device, less ", kSteps)),
              std::string::npos)
        << opened->drafter_kv_arithmetic;
    EXPECT_THAT(opened->kv_arithmetic,
                ::testing::EndsWith(Concat(": ", kFree, " of the device, less ", kSteps, " for steps and ",
                                           opened->drafter_kv_bytes + kSteps, " for the drafter")));
  }
  FakeDevice device;
  device.free_bytes = kFree;
  OpenEngineOptions options = WithDraftModel("auto");
  options.kv_pool_bytes = 50 << 20;
  options.speculation.kv_pool_bytes = 20 << 20;
  EXPECT_EQ(Reason(OpenEngine(options).status()), "kv_pool_too_small");
}

TEST(OpenEngine, ADeviceThatADrafterFillsNamesItsPart) {
  FakeDevice device;
  device.free_bytes = 1 << 20;  // a context of the model that answers needs 640 KiB in bf16
  OpenEngineOptions options = WithDraftModel("cuda");
  options.speculation.kv_pool_bytes = 512 << 10;
  const Status refused = OpenEngine(options).status();
  EXPECT_EQ(Reason(refused), "kv_pool_too_small") << refused;
  EXPECT_NE(Message(refused).find("beside the drafter's 14 bytes of weights and 516096 for its pool"),
            std::string::npos)
      << refused;
  options.speculation.kv_pool_bytes = 64 << 10;
  const auto opened = OpenEngine(options);
  EXPECT_TRUE(opened.ok()) << opened.status();
}

TEST(OpenEngine, AModelMayDraftOnTheCpusBesideADevice) {
  const struct {
    const char *device, *draft_device, *unsupported, *unsupported_executor, *note;
    size_t loaded;
  } cases[] = {{"cuda", "cpu", "", "", "", 1},
               {"auto", "auto", "terrace-demo-nano", "", "engine.speculation.model: no kernels for", 1},
               {"auto", "auto", "", "terrace-demo-nano", "engine.speculation.model: no kernels for", 2}};
  for (const auto& c : cases) {
    FakeDevice device;
    device.unsupported_model = c.unsupported;
    device.unsupported_executor = c.unsupported_executor;
    OpenEngineOptions options = WithDraftModel(c.device, c.draft_device);
    options.compute = "auto";
    auto opened = OpenEngine(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->device, FakeDevice::kName);
    EXPECT_TRUE(opened->drafter_device.starts_with("cpu")) << opened->drafter_device;
    EXPECT_EQ(opened->drafter_note.substr(0, std::string_view(c.note).size()), c.note);
    EXPECT_EQ(opened->drafter_note.empty(), std::string_view(c.note).empty());
    EXPECT_EQ(opened->drafter_parameters, 262592u);
    EXPECT_EQ(device.models.size(), c.loaded);
    EXPECT_EQ(AnswerOf(*opened).tokens.size(), 5u);
  }
}

TEST(OpenEngine, WhereADraftModelIsAskedForByNameItIsOrNothing) {
  {
    FakeDevice device;
    device.unsupported_model = "terrace-demo-nano";
    for (const char* place : {"auto", "cuda"}) {
      const Status refused = OpenEngine(WithDraftModel(place, "cuda")).status();
      EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
      EXPECT_EQ(Reason(refused), "unsupported_device");
      EXPECT_EQ(
          Message(refused),
          "engine.speculation.device: cuda: engine.speculation.model: no kernels for terrace-demo-nano");
    }
  }
  FakeDevice device;
  device.found = WithReason(Unavailable("no driver"), "no_device");
  EXPECT_EQ(Reason(OpenEngine(WithDraftModel("auto", "cuda")).status()), "no_device");
  const auto on_cpus = OpenEngine(WithDraftModel("auto"));
  ASSERT_TRUE(on_cpus.ok()) << on_cpus.status();
  EXPECT_EQ(on_cpus->drafter_device, on_cpus->device);
}

TEST(OpenEngine, WithDeviceCpuNobodyLooksForADevice) {
  OpenEngineOptions options = WithFakeDevice("cpu");
  options.find_device = nullptr;
  const auto opened = OpenEngine(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_TRUE(opened->device.starts_with("cpu")) << opened->device;
  EXPECT_EQ(opened->device_note, "");
}

// Blocks of the KV cache that were computed with another number have other bits.
TEST(OpenEngine, VirtualShardsArePartOfTheKeysOfBlocks) {
  OpenEngineOptions options{.model = "models/terrace-demo-nano", .threads = 1, .device = "cpu"};
  const auto layout = [&](uint32_t shards) {
    options.virtual_shards = shards;
    const auto opened = OpenEngine(options);
    CHECK(opened.ok(), Message(opened.status()));
    return opened->engine->scheduler_options().scope.layout;
  };
  const std::string one = layout(1);
  EXPECT_EQ(one.find("shards"), std::string::npos);
  EXPECT_EQ(layout(4), one + " shards 4");
}

TEST(OpenEngine, TellsWhatItOpened) {
  const OpenedEngine opened =
      Open({.threads = 1, .max_sequences = 2, .max_step_tokens = 16, .block_tokens = 16});
  EXPECT_EQ(opened.parameters, 262592u);
  EXPECT_EQ(opened.context_length, 512u);
  EXPECT_EQ(opened.blocks, 2 * 512u / 16);
  EXPECT_EQ(opened.kv_bytes,
            uint64_t{2} * 3 * 2 * 32 * 4 * opened.blocks * 16);  // K and V, layers, heads, head_dim, f32
  EXPECT_EQ(opened.weight_dtype, "F16");
  EXPECT_EQ(opened.threads, 1u);
}

}  // namespace
}  // namespace terrace
