// A whole model on several ranks, here threads of one process, that share its layers, or have some of them
// each, or both: its answers are those of one process with the same virtual shards.
#include <atomic>
#include <future>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/fake_device.h"
#include "worker/engine/follower.h"
#include "worker/engine/open_engine.h"
#include "worker/engine/testing_group.h"
#include "worker/parallel/local_communicator.h"
#include "worker/parallel/shard_plan.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr Duration kLong = std::chrono::seconds(120);  // no rank misses it
constexpr uint32_t kVocab = 1024, kShards = 4;

// Few blocks and a swap memory: sequences are preempted, and blocks moved.
OpenEngineOptions Options(const GroupOptions& group = {}) {
  return {.model = "models/terrace-demo-base",
          .threads = 1,
          .max_sequences = 12,
          .max_step_tokens = 64,  // several micro-batches of two stages or more
          .compute = "f32",
          .device = "cpu",
          .virtual_shards = kShards,
          .group = group,
          .speculation = {.drafter = "ngram"}};
}

SequenceSpec RandomSpec(std::mt19937& random) {
  const auto draw = [&](uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random);
  };
  SequenceSpec spec;
  for (uint32_t i = draw(1, 100); i > 0; --i)
    spec.prompt.push_back(static_cast<int32_t>(draw(6, kVocab - 1)));
  spec.max_tokens = draw(20, 100);
  spec.ignore_eos = true;
  spec.top_logprobs = draw(0, 2);
  spec.score_prompt = draw(0, 3) == 0;
  spec.sampling.temperature = static_cast<float>(draw(0, 1));
  spec.sampling.seed = random();
  return spec;
}

void ExpectSame(const CollectingSink::Answer& got, const CollectingSink::Answer& want) {
  EXPECT_EQ(got.result.error, Status());
  ASSERT_EQ(got.ids(), want.ids());
  ASSERT_EQ(got.prompt_scores.size(), want.prompt_scores.size());
  for (size_t i = 0; i < want.tokens.size(); ++i) EXPECT_EQ(got.tokens[i].logprob, want.tokens[i].logprob);
  for (size_t i = 0; i < want.prompt_scores.size(); ++i)
    EXPECT_EQ(got.prompt_scores[i].logprob, want.prompt_scores[i].logprob);
}

std::vector<CollectingSink::Answer> AnswersOf(Engine& engine, const std::vector<SequenceSpec>& specs) {
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (const SequenceSpec& spec : specs) {
    sinks.push_back(std::make_shared<CollectingSink>());
    EXPECT_EQ(engine.Submit(spec, sinks.back()), Status());
  }
  std::vector<CollectingSink::Answer> answers;
  for (const auto& sink : sinks) answers.push_back(sink->Wait());
  return answers;
}

// Runs rank `rank` to its end.
class RankThread {
 public:
  explicit RankThread(OpenEngineOptions options, std::function<bool()> is_stopped = nullptr)
      : thread_([this, options = std::move(options), is_stopped] {
          const auto follower = Follower::Open(options);
          opened = follower.status();
          if (!opened.ok()) return;
          blocks = (*follower)->loaded().kv_shape.blocks;
          end = (*follower)->Run(is_stopped);
        }) {}
  void Join() { thread_.join(); }

  // Once joined.
  Status opened, end;
  uint32_t blocks = 0;

 private:
  std::thread thread_;
};

TEST(GroupEngine, AnswersAreThoseOfOneProcessWithTheSameVirtualShards) {
  const uint32_t seed = 2027;
  SCOPED_TRACE(Concat("seed ", seed));
  std::mt19937 random(seed);
  std::vector<SequenceSpec> specs;
  for (int i = 0; i < 20; ++i) specs.push_back(RandomSpec(random));
  std::vector<CollectingSink::Answer> want;
  std::string layout;
  uint64_t parameters = 0, block_bytes = 0;
  uint32_t layers = 0;
  {
    auto alone = OpenEngine(Options());
    ASSERT_TRUE(alone.ok()) << alone.status();
    want = AnswersOf(*alone->engine, specs);
    layout = alone->engine->scheduler_options().scope.layout;
    parameters = alone->parameters;
    block_bytes = alone->kv_bytes / alone->blocks;
    layers = alone->files->config.layers;
    EXPECT_TRUE(alone->ranks.empty());
  }
  const struct { uint32_t ranks, stages; } cases[] = {{2, 1}, {4, 1}, {2, 2}, {3, 3}, {4, 2}};
  for (const auto& [ranks, stages] : cases) {
    SCOPED_TRACE(Concat(ranks, " ranks in ", stages, " stages"));
    TestingGroup group(ranks, kLong, stages);
    const uint32_t tensor = ranks / stages;
    // One context takes 32 blocks, and all sequences want more than there are: of the leader 48 blocks, of
    // the last rank 40.
    const auto options_of = [&, last = ranks - 1, stages = stages](uint32_t rank) {
      OpenEngineOptions options = Options(group.OptionsOf(rank));
      const uint64_t own_layers = LayersOfStage(layers, rank / tensor, stages).size();
      const uint64_t own_block = block_bytes / layers / tensor * own_layers;
      options.kv_pool_bytes = own_block * (rank == last ? 40 : 48);
      options.host_swap_bytes = own_block * 64;
      return options;
    };
    std::vector<std::unique_ptr<RankThread>> followers;
    for (uint32_t rank = 1; rank < ranks; ++rank)
      followers.push_back(std::make_unique<RankThread>(options_of(rank)));
    {
      auto opened = OpenEngine(options_of(0));
      ASSERT_TRUE(opened.ok()) << opened.status();
      EXPECT_EQ(opened->blocks, 40u);
      EXPECT_EQ(opened->parameters, parameters);
      EXPECT_EQ(opened->ranks.size(), ranks);
      EXPECT_EQ(opened->stages, stages);
      uint64_t kv_bytes = 0;
      for (const RankMemory& memory : opened->ranks) kv_bytes += memory.kv_bytes;
      EXPECT_EQ(kv_bytes, 40 * block_bytes) << "of all layers and heads, each once";
      EXPECT_EQ(opened->engine->scheduler_options().scope.layout, layout);
      const auto got = AnswersOf(*opened->engine, specs);
      for (size_t i = 0; i < specs.size(); ++i) ExpectSame(got[i], want[i]);
      const EngineStats stats = opened->engine->Stats();
      EXPECT_GT(stats.recompute_preemptions + stats.swap_preemptions, 0u);
    }
    for (const auto& follower : followers) {
      follower->Join();
      EXPECT_EQ(follower->opened, Status());
      EXPECT_EQ(follower->end, Status());
      EXPECT_EQ(follower->blocks, 40u);
    }
    for (const RankTraits& traits : group.traits()) {
      EXPECT_EQ(traits.settings, group.traits()[0].settings);
      EXPECT_EQ(traits.model_digest, group.traits()[0].model_digest);
    }
  }
}

class GroupEngineOfStages : public testing::TestWithParam<uint32_t> {};
INSTANTIATE_TEST_SUITE_P(All, GroupEngineOfStages, testing::Values(1u, 2u));

TEST_P(GroupEngineOfStages, ARankThatLeavesEndsAnswersForAnotherWorkerToGoOnWith) {
  TestingGroup group(2, kLong, GetParam());
  std::atomic<bool> is_stopped = false;
  RankThread follower(Options(group.OptionsOf(1)), [&] { return is_stopped.load(); });
  OpenEngineOptions options = Options(group.OptionsOf(0));
  std::atomic<int> lost = 0;
  options.on_device_lost = [&](const Status&) { ++lost; };
  auto opened = OpenEngine(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  SequenceSpec endless;
  endless.prompt = {7};
  endless.max_tokens = 500;
  endless.ignore_eos = true;
  auto sink = std::make_shared<CollectingSink>();
  ASSERT_EQ(opened->engine->Submit(endless, sink), Status());
  is_stopped = true;
  const CollectingSink::Answer answer = sink->Wait();
  follower.Join();
  EXPECT_EQ(answer.result.error.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(answer.result.error), "device_lost");
  EXPECT_THAT(Message(opened->engine->device_error()), HasSubstr("rank 1"));
  EXPECT_EQ(lost, 1);
  EXPECT_EQ(opened->engine->Submit(endless, sink).code(), StatusCode::kUnavailable);
}

// Nobody asks for anything: the device is lost all the same.
TEST_P(GroupEngineOfStages, ARankThatLeavesAnIdleGroupIsMissed) {
  TestingGroup group(2, kLong, GetParam());
  std::atomic<bool> is_stopped = false;
  RankThread follower(Options(group.OptionsOf(1)), [&] { return is_stopped.load(); });
  std::promise<Status> lost;
  OpenEngineOptions options = Options(group.OptionsOf(0));
  options.on_device_lost = [&](const Status& error) { lost.set_value(error); };
  auto opened = OpenEngine(options);
  ASSERT_TRUE(opened.ok()) << opened.status();
  is_stopped = true;
  EXPECT_THAT(Message(lost.get_future().get()), HasSubstr("rank 1"));
  follower.Join();
}

TEST(GroupEngine, WhatCannotBeSharedOutIsToldBeforeTheRanksMeet) {
  OpenEngineOptions options = Options({.rank = 0, .ranks = 4, .join = [](const RankTraits&) {
                                         ADD_FAILURE() << "it joined";
                                         return Unavailable("no");
                                       }});
  options.model = "models/terrace-demo-nano";
  const Status status = OpenEngine(options).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(Reason(status), "cannot_shard");
  options.group.stages = 4;
  EXPECT_EQ(Message(OpenEngine(options).status()),
            "group.pipeline_parallel is 4, and the model has 3 layers");
}

// Of a group whose ranks have a device each, on one machine.
OpenEngineOptions DeviceOptions(TestingGroup& group, uint32_t rank, uint32_t ranks, const char* device) {
  OpenEngineOptions options = Options(group.OptionsOf(rank));
  options.compute = "auto";
  options.device = device;
  options.virtual_shards = ranks;
  options.group.shares_machine = true;
  options.find_device = FakeDevice::Find;
  return options;
}

TEST(GroupEngine, RanksOnDevicesHaveTheirPartsAndTheLeaderAnswers) {
  constexpr uint32_t kRanks = 2;
  FakeDevice device;
  device.devices = 4;
  TestingGroup group(kRanks, kLong);
  RankThread follower(DeviceOptions(group, 1, kRanks, "cuda"));
  {
    auto opened = OpenEngine(DeviceOptions(group, 0, kRanks, "cuda"));
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->device, FakeDevice::kName);
    EXPECT_EQ(opened->ranks.size(), kRanks);
    SequenceSpec spec;
    spec.prompt = {7, 8};
    spec.max_tokens = 5;
    spec.ignore_eos = true;
    EXPECT_EQ(AnswersOf(*opened->engine, {spec})[0].tokens.size(), 5u);
  }
  follower.Join();
  EXPECT_EQ(follower.opened, Status());
  EXPECT_EQ(follower.end, Status());
  ASSERT_EQ(device.models.size(), kRanks);
  for (const FakeDevice::Loaded& each : device.models) {
    EXPECT_EQ(each.ranks, kRanks);
    EXPECT_EQ(each.device, each.rank) << "each its own";
    EXPECT_TRUE(each.is_connected);
    EXPECT_EQ(each.shape.kv_heads, 2u) << "of the model's four";
    EXPECT_EQ(each.shape.blocks, device.models[0].shape.blocks);
    EXPECT_EQ(each.steps > 0, each.rank > 0) << "as many as the leader's";
  }
  ASSERT_EQ(group.traits().size(), kRanks);
  EXPECT_EQ(group.traits()[0].settings, group.traits()[1].settings);
  const auto settings = group.traits()[0].settings;
  EXPECT_THAT(settings, testing::Contains(std::pair<std::string, std::string>("engine.kernels", "cuda")));
  EXPECT_THAT(settings,
              testing::Contains(std::pair<std::string, std::string>("engine.max_step_tokens", "64")));
}

TEST(GroupEngine, WithDeviceAutoAGroupStaysOnTheCpusAndSaysWhy) {
  FakeDevice device;
  TestingGroup group(2, kLong);
  RankThread follower(DeviceOptions(group, 1, 2, "auto"));
  {
    auto opened = OpenEngine(DeviceOptions(group, 0, 2, "auto"));
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_THAT(opened->device_note, HasSubstr("on GPUs it needs engine.device: cuda"));
    EXPECT_EQ(opened->device_model, nullptr);
  }
  follower.Join();
  EXPECT_EQ(follower.opened, Status());
  EXPECT_EQ(follower.end, Status());
  EXPECT_TRUE(device.models.empty());
}

// It would be missed only when this one has loaded all of its part.
TEST(GroupEngine, ALoadEndsWhenAnotherRankIsLost) {
  struct Lost : RankGroup {
    Communicator& communicator() override { return *ranks[0]; }
    Status AwaitAll() override { return Internal("asked after the load"); }
    Status FindLost() override { return Unavailable("rank 1 has left the group"); }
    std::vector<std::unique_ptr<Communicator>> ranks = MakeLocalCommunicators(2, kLong);
  };
  bool is_cancelled = false, has_joined = false;
  OpenEngineOptions options =
      Options({.ranks = 2, .join = [&has_joined](const RankTraits&) {
                 has_joined = true;
                 return StatusOr<std::unique_ptr<RankGroup>>(std::make_unique<Lost>());
               }});
  options.is_cancelled = [&] { return is_cancelled && has_joined; };
  EXPECT_EQ(OpenEngine(options).status(), Unavailable("rank 1 has left the group"));
  is_cancelled = true;
  has_joined = false;
  EXPECT_EQ(OpenEngine(options).status().code(), StatusCode::kCancelled) << "somebody asked for it";
}

TEST(GroupEngine, WhatDevicesCannotShareOutIsToldBeforeTheRanksMeet) {
  FakeDevice device;
  TestingGroup group(2, kLong);
  OpenEngineOptions options = DeviceOptions(group, 0, 2, "cuda");
  options.model = "models/terrace-demo-nano";  // a rank would have one head of 32
  const Status status = OpenEngine(options).status();
  EXPECT_EQ(Reason(status), "cannot_shard");
  EXPECT_THAT(Message(status), HasSubstr("32 wide, not whole blocks of 64"));
  EXPECT_TRUE(group.traits().empty());
}

TEST(GroupEngine, ARankThatCannotLoadEndsTheOthersWait) {
  TestingGroup group(2, kLong);
  OpenEngineOptions options = Options(group.OptionsOf(1));
  options.kv_pool_bytes = 1;
  RankThread follower(options);
  const Status status = OpenEngine(Options(group.OptionsOf(0))).status();
  follower.Join();
  EXPECT_EQ(Reason(follower.opened), "kv_pool_too_small");
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
}

}  // namespace
}  // namespace terrace
