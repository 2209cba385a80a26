// The same-bits contract (docs/adr/0003-same-bits.md) through the real scheduler: whatever the batch, the
// chunks, the block size, the prefix cache, preemptions and the number of threads, the logits of a position
// are those of its sequence run alone, and so is the answer; also where it is resumed, and whatever is
// drafted.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>

#include "base/fake_clock.h"
#include "base/hash.h"
#include "gtest/gtest.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/scheduler.h"
#include "worker/model/model_testing.h"

namespace terrace {
namespace {

constexpr size_t kSequences = 16;

// An Executor that takes the logits of every computed position and keeps their hashes, but for those of
// drafted tokens that were not accepted.
class LogitsExecutor : public Executor {
 public:
  // Hash of the logits by seed of the sequence and position.
  using Hashes = std::map<std::pair<uint64_t, uint32_t>, Hash128>;

  explicit LogitsExecutor(TestModel& model) : model_(model) {}

  StepResult Run(const StepPlan& plan) override {
    for (const BlockTransfer& transfer : plan.transfers) Move(transfer);
    Batch batch;
    for (const PlannedSequence& part : plan.sequences) {
      batch.sequences.push_back({.tokens = part.tokens,
                                 .first_position = part.first_position,
                                 .blocks = part.blocks,
                                 .logits = static_cast<uint32_t>(part.tokens.size())});
    }
    std::span<const float> logits = Forward(model_, batch);
    const size_t vocab = model_.transformer->config().vocab_size;
    StepResult result;
    for (const PlannedSequence& part : plan.sequences) {
      const std::span<const float> rows = logits.first(part.tokens.size() * vocab);
      logits = logits.subspan(rows.size());
      size_t real = part.tokens.size() - part.proposed;
      SequenceOutput& output = result.outputs.emplace_back();
      if (part.sample) {
        const std::span<const float> choices = rows.subspan((real - 1) * vocab);
        output = ChooseTokens(part, [&](uint32_t row, const TokenCounts& counts, uint64_t index) {
          return sampler_.Sample(choices.subspan(row * vocab, vocab), *part.sampling, counts, index,
                                 {.top = part.top_logprobs, .signals = part.signals});
        });
        CHECK(output.error.ok());
        real += output.tokens.size() - 1;
      }
      for (uint32_t i = 0; i < real; ++i)
        Keep({part.sampling->seed, part.first_position + i}, rows.subspan(i * vocab, vocab));
    }
    return result;
  }

  const Hashes& hashes() const { return hashes_; }
  bool has_one_value_each() const { return has_one_value_each_; }

 private:
  void Move(const BlockTransfer& transfer) {
    switch (transfer.kind) {
      case BlockTransfer::Kind::kCopyRows:
        return model_.kv->CopyRows(transfer.from, transfer.to, transfer.rows);
      case BlockTransfer::Kind::kToHost:
        return model_.kv->CopyToHost(transfer.from, static_cast<uint32_t>(transfer.to));
      case BlockTransfer::Kind::kFromHost:
        return model_.kv->CopyFromHost(static_cast<uint32_t>(transfer.from), transfer.to);
    }
  }

  // A position that is computed again after a preemption must have the logits it had.
  void Keep(const std::pair<uint64_t, uint32_t>& place, std::span<const float> logits) {
    const Hash128 hash = HashBytes({reinterpret_cast<const char*>(logits.data()), logits.size_bytes()});
    has_one_value_each_ = has_one_value_each_ && hashes_.try_emplace(place, hash).first->second == hash;
  }

  TestModel& model_;
  Sampler sampler_;
  Hashes hashes_;
  bool has_one_value_each_ = true;
};

// Sixteen requests: greedy and sampled, of lengths around the edges of blocks (16), one of two attention
// spans; some begin alike, some are the same.
std::vector<SequenceSpec> Requests(uint32_t vocab_size) {
  std::mt19937 random(1);
  const auto draw = [&](uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random);
  };
  std::vector<SequenceSpec> specs(kSequences);
  const uint32_t lengths[kSequences] = {1, 2, 15, 16, 17, 31, 33, 48, 63, 64, 65, 80, 100, 129, 129, 400};
  for (size_t i = 0; i < kSequences; ++i) {
    SequenceSpec& spec = specs[i];
    while (spec.prompt.size() < lengths[i])
      spec.prompt.push_back(static_cast<int32_t>(draw(0, vocab_size - 1)));
    if (i >= 7 && i % 2 == 1) std::copy_n(specs[6].prompt.begin(), 33, spec.prompt.begin());
    if (i == 14) spec.prompt = specs[13].prompt;
    spec.max_tokens = draw(1, 60);
    spec.ignore_eos = true;
    spec.sampling.seed = i + 1;
    spec.sampling.temperature = i % 3 == 0 ? 0.0f : 0.9f;
    if (i % 4 == 1) spec.sampling.repetition_penalty = 1.2f;
    if (i % 4 == 2) spec.sampling.frequency_penalty = 0.5f;
    spec.top_logprobs = i % 5 == 0 ? 2 : 0;
    spec.signals = i % 2 == 0;
  }
  return specs;
}

// What a schedule must not change: the logits that every token of every answer was chosen from.
Hash128 HashOfAnswers(const std::vector<SequenceSpec>& specs, const LogitsExecutor::Hashes& hashes) {
  Hasher hasher;
  for (const SequenceSpec& spec : specs) {
    for (uint32_t i = 0; i < spec.max_tokens; ++i) {
      const Hash128& hash =
          hashes.at({spec.sampling.seed, static_cast<uint32_t>(spec.prompt.size()) - 1 + i});
      hasher.Add(hash.high).Add(hash.low);
    }
  }
  return hasher.Finish();
}

// Each sequence on its own, its prompt in one piece.
struct Alone {
  LogitsExecutor::Hashes hashes;
  std::map<uint64_t, std::vector<SampledToken>> answers;  // by seed
};

Alone RunAlone(TestModel& model, SchedulerOptions options, const std::vector<SequenceSpec>& specs) {
  options.max_sequences = 1;
  options.max_step_tokens = 512;
  options.block_tokens = model.kv->shape().block_tokens;
  options.prefix_cache = false;
  Alone alone;
  for (const SequenceSpec& spec : specs) {
    FakeClock clock;
    Scheduler scheduler(options);
    LogitsExecutor executor(model);
    model.PoisonKv();
    const auto sink = std::make_shared<CollectingSink>();
    scheduler.Add(spec, sink, clock.Now());
    while (!scheduler.idle()) {
      const StepPlan plan = scheduler.Schedule(clock.Now());
      scheduler.Commit(plan, executor.Run(plan), clock.Now());
    }
    alone.hashes.insert(executor.hashes().begin(), executor.hashes().end());
    alone.answers[spec.sampling.seed] = sink->Wait().tokens;
  }
  return alone;
}

// `spec`, cut off behind `resumed` tokens of its answer. Half of the time there is a draft: right up to some
// token, then anything.
SequenceSpec CutOff(SequenceSpec spec, std::span<const SampledToken> answer, uint32_t resumed,
                    uint32_t vocab_size, std::mt19937& random) {
  const auto draw = [&](uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random);
  };
  for (const SampledToken& token : answer.first(resumed)) spec.resume.push_back(token.token);
  const auto rest = answer.subspan(resumed);
  if (draw(0, 1) == 0) return spec;
  for (const SampledToken& token : rest.first(draw(0, static_cast<uint32_t>(rest.size()))))
    spec.draft.push_back(token.token);
  for (uint32_t guesses = draw(0, 1) * draw(0, 40); guesses > 0; --guesses)
    spec.draft.push_back(static_cast<int32_t>(draw(0, vocab_size - 1)));
  return spec;
}

void ExpectSameTokens(std::span<const SampledToken> got, std::span<const SampledToken> want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].token, want[i].token) << "token " << i;
    ASSERT_EQ(got[i].logprob, want[i].logprob) << "token " << i;
    ASSERT_EQ(got[i].margin, want[i].margin) << "token " << i;
    ASSERT_EQ(got[i].entropy, want[i].entropy) << "token " << i;
    ASSERT_EQ(got[i].top.size(), want[i].top.size()) << "token " << i;
    for (size_t rank = 0; rank < got[i].top.size(); ++rank) {
      ASSERT_EQ(got[i].top[rank].token, want[i].top[rank].token) << "token " << i;
      ASSERT_EQ(got[i].top[rank].logprob, want[i].top[rank].logprob) << "token " << i;
    }
  }
}

struct Counts {
  uint64_t prefix_hit_tokens = 0, recompute_preemptions = 0, swap_preemptions = 0;
  uint64_t accepted_draft_tokens = 0, rejected_draft_tokens = 0;
  uint64_t offered_tokens = 0, accepted_offered_tokens = 0, accepted_branch_tokens = 0;
};

// Drafts for what the plan decodes, as a drafter of the engine makes them: right up to some token, then
// anything. Beside those that are wrong from the first token on, branches that are right.
void OfferDrafts(Scheduler& scheduler, StepPlan& plan, const Alone& alone, std::mt19937& random) {
  const auto draw = [&](uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random);
  };
  for (const DraftWish& wish : scheduler.Wishes(plan)) {
    const auto rest =
        std::span(alone.answers.at(wish.request.sampling->seed)).subspan(wish.request.generated());
    std::vector<int32_t> draft;
    const uint32_t right = draw(0, 2) * draw(0, 4);
    for (const SampledToken& token : rest.first(std::min<size_t>(rest.size(), right)))
      draft.push_back(token.token);
    for (uint32_t guesses = draw(0, 1) * draw(0, 4); guesses > 0; --guesses)
      draft.push_back(static_cast<int32_t>(draw(0, scheduler.options().vocab_size - 1)));
    scheduler.Offer(plan, wish.part, draft, draw(0, static_cast<uint32_t>(draft.size())));
    if (draft.empty()) continue;
    std::vector<int32_t> branch = {(draft[0] + 1) % static_cast<int32_t>(scheduler.options().vocab_size), 0};
    if (draft[0] != rest[0].token) {
      branch.clear();
      for (const SampledToken& token : rest.first(std::min<size_t>(rest.size(), draw(1, 6))))
        branch.push_back(token.token);
    }
    scheduler.OfferBranch(plan, wish.part, branch, draw(0, static_cast<uint32_t>(branch.size())));
  }
}

struct Running {
  SequenceSpec spec;
  std::shared_ptr<CollectingSink> sink;
};

// Runs all of `specs`, which come while others run, and checks every position and token against `alone`. In
// every other schedule they were cut off before.
Hash128 RunSchedule(TestModel& model, SchedulerOptions options, const std::vector<SequenceSpec>& specs,
                    const Alone& alone, std::mt19937& random, Counts& counts) {
  const auto draw = [&](uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random);
  };
  model.PoisonKv();
  FakeClock clock;
  Scheduler scheduler(options);
  LogitsExecutor executor(model);
  std::vector<SequenceSpec> arriving = specs;
  std::ranges::shuffle(arriving, random);
  const bool are_cut_off = draw(0, 1) == 1;
  for (SequenceSpec& spec : arriving) {
    spec.priority = static_cast<int32_t>(draw(0, 2));
    if (!are_cut_off) continue;
    const uint32_t resumed = draw(0, spec.max_tokens - 1);
    spec = CutOff(spec, alone.answers.at(spec.sampling.seed), resumed, options.vocab_size, random);
  }
  const uint32_t arrivals = draw(0, 3);  // in how many of four steps one comes
  const bool are_drafted = draw(0, 1) == 1;
  std::vector<Running> all;
  for (int steps = 0; !arriving.empty() || !scheduler.idle(); ++steps) {
    CHECK(steps < 100000);
    while (!arriving.empty() && (arrivals == 0 || scheduler.idle() || draw(0, 3) < arrivals)) {
      CHECK(Scheduler::Validate(arriving.back(), options).ok());
      all.push_back({arriving.back(), std::make_shared<CollectingSink>(arriving.back().resume.size())});
      scheduler.Add(arriving.back(), all.back().sink, clock.Now());
      arriving.pop_back();
      if (arrivals > 0) break;
    }
    scheduler.SetCosts({.swap_seconds_per_block = draw(0, 1) * 1.0});  // either way is cheaper now and then
    clock.Advance(std::chrono::milliseconds(1));
    StepPlan plan = scheduler.Schedule(clock.Now());
    CHECK(!plan.empty());
    if (are_drafted) OfferDrafts(scheduler, plan, alone, random);
    scheduler.Commit(plan, executor.Run(plan), clock.Now());
    for (const DraftOutcome& outcome : scheduler.TakeDraftOutcomes()) {
      counts.offered_tokens += outcome.verified + outcome.branch.verified;
      counts.accepted_offered_tokens += outcome.verified > 0 ? outcome.accepted : 0;
      counts.accepted_branch_tokens += outcome.branch.verified > 0 ? outcome.branch.accepted : 0;
    }
  }
  const SchedulerStats stats = scheduler.Stats();
  EXPECT_EQ(stats.finished, specs.size());
  counts.prefix_hit_tokens += stats.prefix_hit_tokens;
  counts.recompute_preemptions += stats.recompute_preemptions;
  counts.swap_preemptions += stats.swap_preemptions;
  counts.accepted_draft_tokens += stats.accepted_draft_tokens;
  counts.rejected_draft_tokens += stats.rejected_draft_tokens;
  EXPECT_TRUE(executor.has_one_value_each());
  for (const auto& [place, hash] : executor.hashes()) {
    EXPECT_EQ(hash, alone.hashes.at(place)) << "sequence " << place.first << ", position " << place.second;
    if (hash != alone.hashes.at(place)) break;
  }
  for (const Running& each : all) {
    const auto answer = std::span(alone.answers.at(each.spec.sampling.seed));
    ExpectSameTokens(each.sink->Wait().tokens, answer.subspan(each.spec.resume.size()));
  }
  LogitsExecutor::Hashes hashes = executor.hashes();
  if (are_cut_off) hashes.insert(alone.hashes.begin(), alone.hashes.end());  // what was before the cut
  return HashOfAnswers(specs, hashes);
}

// At most as many as the environment says: a sanitizer sees in a few what it sees in many.
size_t Schedules(size_t wanted) {
  const char* most = std::getenv("TERRACE_SCHEDULES");
  return most == nullptr ? wanted : std::min(wanted, static_cast<size_t>(std::atoi(most)));
}

constexpr uint32_t kBlocks = 512;

KvShape ShapeOf(const ModelConfig& config, uint32_t block_tokens, KvDType dtype) {
  return {.layers = config.layers,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .block_tokens = block_tokens,
          .blocks = kBlocks,
          .dtype = dtype,
          .host_blocks = kBlocks};
}

SchedulerOptions OptionsOf(const ModelConfig& config) {
  return {.context_length = config.context_length,
          .vocab_size = config.vocab_size,
          .blocks = kBlocks,
          .audits = true};
}

void ExpectOneHash(const std::string& path, const OpTable& ops, KvDType dtype, size_t schedules) {
  const ModelFiles files = OpenTestModel(path);
  const auto specs = Requests(files.config.vocab_size);
  std::map<std::pair<uint32_t, size_t>, std::unique_ptr<TestModel>> models;  // by block size and threads
  const auto model_of = [&](uint32_t block_tokens, size_t threads) -> TestModel& {
    auto& model = models[{block_tokens, threads}];
    if (!model) {
      model = std::make_unique<TestModel>(files.config, *files.weights, ops, threads,
                                          ShapeOf(files.config, block_tokens, dtype));
    }
    return *model;
  };
  SchedulerOptions options = OptionsOf(files.config);
  const Alone alone = RunAlone(model_of(16, 1), options, specs);
  const Hash128 want = HashOfAnswers(specs, alone.hashes);

  Counts counts;
  size_t largest_chunk = 0;
  for (uint32_t seed = 1; seed <= schedules; ++seed) {
    std::mt19937 random(seed);
    const auto draw = [&](uint32_t low, uint32_t high) {
      return std::uniform_int_distribution<uint32_t>(low, high)(random);
    };
    options.max_sequences = draw(1, 16);
    options.max_step_tokens = std::max(options.max_sequences, uint32_t{1} << draw(0, 9));
    options.block_tokens = std::vector<uint32_t>{1, 5, 16, 16, 16, 32}[draw(0, 5)];
    const auto needed = static_cast<uint32_t>(BlocksFor(460, options.block_tokens));  // of the longest
    options.blocks = draw(0, 1) == 0 ? kBlocks : std::min(kBlocks, needed + draw(0, needed / 4));
    options.host_blocks = draw(0, 1) * kBlocks;
    options.prefix_cache = draw(0, 2) > 0;
    options.max_prefill_wait_seconds = 0.001 * draw(1, 50);
    const uint32_t threads = draw(1, 2);
    SCOPED_TRACE(testing::Message() << path << ", " << ops.name << ", KV " << KvDTypeName(dtype) << ", seed "
                                    << seed << ", threads " << threads);
    largest_chunk = std::max<size_t>(largest_chunk, options.max_step_tokens);
    ASSERT_EQ(
        RunSchedule(model_of(options.block_tokens, threads), options, specs, alone, random, counts).Hex(),
        want.Hex());
    ASSERT_FALSE(testing::Test::HasFailure());
  }
  std::cout << path << ", " << ops.name << ", KV " << KvDTypeName(dtype) << ": hash " << want.Hex() << " in "
            << schedules << " of " << schedules << " schedules; " << counts.prefix_hit_tokens
            << " tokens from the prefix cache, " << counts.recompute_preemptions
            << " preemptions recomputed, " << counts.swap_preemptions << " swapped, "
            << counts.accepted_draft_tokens << " tokens of drafts accepted, " << counts.rejected_draft_tokens
            << " rejected, " << counts.accepted_offered_tokens << " of " << counts.offered_tokens
            << " offered ones accepted, and " << counts.accepted_branch_tokens << " of branches\n";
  if (schedules < 30) return;  // else all of it has happened
  EXPECT_GT(counts.prefix_hit_tokens, 0u);
  EXPECT_GT(counts.recompute_preemptions, 0u);
  EXPECT_GT(counts.swap_preemptions, 0u);
  EXPECT_GT(counts.accepted_draft_tokens, 0u);
  EXPECT_GT(counts.rejected_draft_tokens, 0u);
  EXPECT_GT(counts.accepted_offered_tokens, 0u);
  EXPECT_GT(counts.accepted_branch_tokens, 0u);
  EXPECT_GT(counts.offered_tokens, counts.accepted_offered_tokens);
  EXPECT_EQ(largest_chunk, 512u);
}

// Every answer, cut off behind every token of it; all of one answer's rests run beside each other.
void ExpectEveryRestToBeTheSame(const std::string& path, const OpTable& ops, KvDType dtype) {
  const ModelFiles files = OpenTestModel(path);
  const auto specs = Requests(files.config.vocab_size);
  TestModel model(files.config, *files.weights, ops, /*threads=*/1, ShapeOf(files.config, 16, dtype));
  SchedulerOptions options = OptionsOf(files.config);
  const Alone alone = RunAlone(model, options, specs);
  const uint32_t seed = 7;
  std::mt19937 random(seed);
  for (const SequenceSpec& spec : specs) {
    SCOPED_TRACE(testing::Message() << path << ", " << ops.name << ", KV " << KvDTypeName(dtype) << ", seed "
                                    << seed << ", request " << spec.sampling.seed);
    const auto answer = std::span(alone.answers.at(spec.sampling.seed));
    options.prefix_cache = spec.sampling.seed % 2 == 0;
    options.max_step_tokens = 16u << random() % 6;
    model.PoisonKv();
    FakeClock clock;
    Scheduler scheduler(options);
    LogitsExecutor executor(model);
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    const auto cuts = static_cast<uint32_t>(Schedules(spec.max_tokens));
    for (uint32_t cut = 0; cut < cuts; ++cut) {
      const SequenceSpec rest = CutOff(spec, answer, cut, options.vocab_size, random);
      ASSERT_EQ(Scheduler::Validate(rest, options), Status());
      sinks.push_back(std::make_shared<CollectingSink>(cut));
      scheduler.Add(rest, sinks.back(), clock.Now());
    }
    while (!scheduler.idle()) {
      clock.Advance(std::chrono::milliseconds(1));
      const StepPlan plan = scheduler.Schedule(clock.Now());
      scheduler.Commit(plan, executor.Run(plan), clock.Now());
    }
    EXPECT_TRUE(executor.has_one_value_each());
    for (uint32_t cut = 0; cut < cuts; ++cut)
      ExpectSameTokens(sinks[cut]->Wait().tokens, answer.subspan(cut));
    ASSERT_FALSE(testing::Test::HasFailure());
  }
}

TEST(SameBits, AnAnswerGoesOnTheSameWhereverItWasCutOff) {
  for (const KvDType dtype : {KvDType::kF32, KvDType::kInt8})
    ExpectEveryRestToBeTheSame(DemoFolder("terrace-demo-nano"), CpuOps(), dtype);
  ExpectEveryRestToBeTheSame(DemoGguf("terrace-demo-small"), CpuOps(), KvDType::kF32);
}

TEST(SameBits, NanoHasOneHashUnderAThousandSchedules) {
  ExpectOneHash(DemoFolder("terrace-demo-nano"), CpuOps(), KvDType::kF32, Schedules(1000));
}

TEST(SameBits, EveryKvDTypeHasOneHash) {
  for (const KvDType dtype : {KvDType::kF16, KvDType::kBF16, KvDType::kInt8, KvDType::kFp8})
    ExpectOneHash(DemoFolder("terrace-demo-nano"), CpuOps(), dtype, Schedules(40));
}

TEST(SameBits, EveryOtherCpuBackendHasOneHash) {
  for (const OpTable& ops : AllCpuOps().subspan(1))
    ExpectOneHash(DemoGguf("terrace-demo-nano"), ops, KvDType::kF32, 6);
}

TEST(SameBits, SmallHasOneHash) {
  ExpectOneHash(DemoGguf("terrace-demo-small"), CpuOps(), KvDType::kF32, Schedules(40));
}

TEST(SameBits, BaseHasOneHash) {
  ExpectOneHash(DemoFolder("terrace-demo-base"), CpuOps(), KvDType::kF32, Schedules(12));
}

}  // namespace
}  // namespace terrace
