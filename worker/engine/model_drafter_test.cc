// The drafter on the fake executor, which plays the KV cache: a row that was not overwritten, a gap or a
// block of two sequences is a CHECK.
#include "worker/engine/model_drafter.h"

#include <algorithm>
#include <map>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/fake_executor.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr uint32_t kVocab = 1000;

struct Answer {
  uint64_t id = 0;
  std::vector<int32_t> tokens;
  uint32_t prompt_tokens = 0;
  SamplingParams sampling;
  TokenCounts counts;

  explicit Answer(uint64_t number, uint32_t prompt) : id(number), prompt_tokens(prompt) {
    for (uint32_t i = 0; i < prompt; ++i) tokens.push_back(static_cast<int32_t>((31 * id + i) % kVocab));
    sampling.seed = number + 1;
  }
  int32_t Next() const {
    return FakeExecutor::AnswerToken(sampling.seed, tokens.size() - prompt_tokens, kVocab);
  }
  void Add(int32_t token) {
    tokens.push_back(token);
    counts.AddGenerated(token);
  }
  DraftRequest Request(uint32_t most) const {
    return {.id = id,
            .tokens = tokens,
            .prompt_tokens = prompt_tokens,
            .sampling = &sampling,
            .counts = &counts,
            .most = most};
  }
};

ModelDrafter::Options SmallOptions() {
  return {.context_length = 256, .block_tokens = 4, .blocks = 100, .max_pass_tokens = 64};
}

std::unique_ptr<Executor> Fake(FakeExecutor::Options options = {}) {
  options.block_tokens = 4;
  return std::make_unique<FakeExecutor>(std::move(options));
}

Drafts Propose(ModelDrafter& drafter, const std::vector<DraftRequest>& requests) {
  StatusOr<Drafts> drafts = drafter.Propose(requests);
  CHECK(drafts.ok(), Message(drafts.status()));
  return *std::move(drafts);
}

// What the model says itself behind the answer so far.
std::vector<int32_t> Said(const Answer& answer, uint32_t count) {
  Answer said = answer;
  while (said.tokens.size() < answer.tokens.size() + count) said.Add(said.Next());
  return {said.tokens.end() - count, said.tokens.end()};
}

TEST(ModelDrafter, DraftsWhatItsModelSaysAndReadsOnlyWhatIsNew) {
  ModelDrafter drafter(SmallOptions(), Fake());
  Answer answer(0, 10);
  EXPECT_EQ(drafter.MissingTokens(answer.Request(3)), 10u);
  Drafts drafts = Propose(drafter, {answer.Request(3)});
  EXPECT_EQ(drafts.tokens[0], Said(answer, 3));
  EXPECT_THAT(drafts.passes, ElementsAre(10u, 1u, 1u));

  for (const int32_t token : Said(answer, 4)) answer.Add(token);  // all were right, and one more
  EXPECT_EQ(drafter.MissingTokens(answer.Request(3)), 2u);
  drafts = Propose(drafter, {answer.Request(3)});
  EXPECT_EQ(drafts.tokens[0], Said(answer, 3));
  EXPECT_THAT(drafts.passes, ElementsAre(2u, 1u, 1u));

  answer.Add(5);  // none was right
  EXPECT_EQ(drafter.MissingTokens(answer.Request(3)), 1u);
  drafts = Propose(drafter, {answer.Request(1)});
  EXPECT_EQ(drafts.tokens[0], Said(answer, 1));
  EXPECT_THAT(drafts.passes, ElementsAre(1u));

  drafter.Forget(0);
  EXPECT_EQ(drafter.free_blocks(), drafter.total_blocks());
  EXPECT_EQ(drafter.MissingTokens(answer.Request(1)), answer.tokens.size());
}

// Many sequences that come, go on rightly and wrongly, and go, in a pool that does not hold them all.
TEST(ModelDrafter, NothingIsLostWhateverIsAccepted) {
  size_t drafted = 0, refused = 0;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(Concat("seed ", seed));
    std::mt19937 random(seed);
    const auto draw = [&](uint32_t low, uint32_t high) {
      return std::uniform_int_distribution<uint32_t>(low, high)(random);
    };
    ModelDrafter::Options options = SmallOptions();
    options.blocks = draw(5, 60);
    options.context_length = draw(40, 200);
    options.max_pass_tokens = draw(1, 64);
    ModelDrafter drafter(options, Fake({.checked_positions = 1000}));
    std::map<uint64_t, Answer> answers;
    uint64_t next = 0;
    for (int call = 0; call < 100; ++call) {
      while (answers.size() < 6 && draw(0, 2) == 0) {
        const uint64_t id = next++;
        answers.emplace(id, Answer(id, draw(1, 60)));
        if (draw(0, 1) == 0) answers.at(id).sampling.presence_penalty = 1;
      }
      std::vector<DraftRequest> requests;
      for (const auto& [id, answer] : answers)
        if (draw(0, 3) > 0) requests.push_back(answer.Request(draw(1, 8)));
      std::ranges::shuffle(requests, random);
      const Drafts drafts = Propose(drafter, requests);
      ASSERT_EQ(drafts.tokens.size(), requests.size());
      for (size_t i = 0; i < requests.size(); ++i) {
        const auto& draft = drafts.tokens[i];
        EXPECT_LE(draft.size(), requests[i].most);
        EXPECT_EQ(draft, Said(answers.at(requests[i].id), static_cast<uint32_t>(draft.size())));
        drafted += draft.size();
        refused += draft.empty() ? 1 : 0;
      }
      for (auto entry = answers.begin(); entry != answers.end();) {
        Answer& answer = entry->second;
        for (uint32_t right = draw(0, 9); right > 0; --right) answer.Add(answer.Next());
        answer.Add(draw(0, 1) == 0 ? answer.Next() : static_cast<int32_t>(draw(0, kVocab - 1)));
        const bool ends = answer.tokens.size() > 150 || draw(0, 9) == 0;
        if (ends) drafter.Forget(answer.id);
        entry = ends ? answers.erase(entry) : std::next(entry);
      }
    }
    for (const auto& [id, answer] : answers) drafter.Forget(id);
    EXPECT_EQ(drafter.free_blocks(), drafter.total_blocks());
  }
  EXPECT_GT(drafted, 5'000u);
  EXPECT_GT(refused, 1'000u);
}

TEST(ModelDrafter, ALongPromptIsReadOverSeveralCallsWhileOthersAreDraftedFor) {
  ModelDrafter drafter(SmallOptions(), Fake());
  const Answer large(0, 100);
  const Answer small(1, 20);
  Drafts drafts = Propose(drafter, {large.Request(2), small.Request(2)});
  EXPECT_THAT(drafts.tokens[0], IsEmpty());
  EXPECT_EQ(drafts.tokens[1], Said(small, 2));
  EXPECT_EQ(drafts.passes[0], 64u);
  EXPECT_EQ(drafter.MissingTokens(large.Request(2)), 56u);
  drafts = Propose(drafter, {large.Request(2)});
  EXPECT_EQ(drafts.tokens[0], Said(large, 2));
}

TEST(ModelDrafter, WhoWasNotAskedForTheLongestGivesItsBlocksUp) {
  ModelDrafter::Options options = SmallOptions();
  options.blocks = 12;
  ModelDrafter drafter(options, Fake());
  const Answer a(0, 18), b(1, 18), c(2, 18);  // 5 blocks each
  for (const Answer* each : {&a, &b, &c})
    EXPECT_EQ(Propose(drafter, {each->Request(2)}).tokens[0], Said(*each, 2));
  EXPECT_EQ(drafter.MissingTokens(a.Request(2)), 18u);
  EXPECT_EQ(drafter.MissingTokens(b.Request(2)), 1u);
  EXPECT_EQ(drafter.MissingTokens(c.Request(2)), 1u);
}

// Neither of two long prompts holds blocks that the other one needs while both wait.
TEST(ModelDrafter, OfTwoThatDoNotFitTogetherOneIsDraftedFor) {
  ModelDrafter::Options options = SmallOptions();
  options.blocks = 50;
  ModelDrafter drafter(options, Fake());
  const Answer a(0, 120), b(1, 121);  // 60% of the pool each
  std::vector<Drafts> calls;
  for (int call = 0; call < 3; ++call) calls.push_back(Propose(drafter, {a.Request(2), b.Request(2)}));
  EXPECT_EQ(calls.at(1).tokens[0], Said(a, 2));
  EXPECT_EQ(calls.at(2).tokens[0], Said(a, 2));
  EXPECT_THAT(calls.at(2).tokens[1], IsEmpty());
  drafter.Forget(0);
  for (int call = 0; call < 2; ++call) calls.push_back(Propose(drafter, {b.Request(2)}));
  EXPECT_EQ(calls.back().tokens[0], Said(b, 2));
}

TEST(ModelDrafter, WhatItsPoolNeverHoldsIsNoneToAskFor) {
  ModelDrafter::Options options = SmallOptions();
  options.blocks = 5;
  ModelDrafter drafter(options, Fake());
  Answer answer(0, 19);
  EXPECT_EQ(Propose(drafter, {answer.Request(8)}).tokens[0], Said(answer, 2)) << "20 tokens have room";
  for (int i = 0; i < 2; ++i) answer.Add(answer.Next());
  EXPECT_EQ(drafter.MissingTokens(answer.Request(8)), std::nullopt);
  EXPECT_THAT(Propose(drafter, {answer.Request(8)}).tokens[0], IsEmpty());
}

TEST(ModelDrafter, BehindTheEndOfItsContextItDraftsNothing) {
  ModelDrafter::Options options = SmallOptions();
  options.context_length = 20;
  ModelDrafter drafter(options, Fake());
  Answer answer(0, 18);
  EXPECT_EQ(Propose(drafter, {answer.Request(8)}).tokens[0].size(), 3u);
  for (int i = 0; i < 3; ++i) answer.Add(answer.Next());
  EXPECT_EQ(drafter.MissingTokens(answer.Request(8)), std::nullopt);
  EXPECT_THAT(Propose(drafter, {answer.Request(8)}).tokens[0], IsEmpty());
}

// The same parameters and the same number of the draw; with penalties also what the draft has said.
TEST(ModelDrafter, TokensAreChosenAsTheAnswersAre) {
  std::vector<uint64_t> indexes;
  std::vector<size_t> counted;
  ModelDrafter drafter(SmallOptions(), Fake({.before_step = [&](const StepPlan& plan) {
                         const PlannedSequence& part = plan.sequences.at(0);
                         EXPECT_EQ(part.sampling->seed, 1u);
                         indexes.push_back(part.sample_index);
                         counted.push_back(part.counts->entries().size());
                       }}));
  Answer answer(0, 5);
  answer.sampling.frequency_penalty = 1;
  answer.Add(900), answer.Add(901);
  Propose(drafter, {answer.Request(3)});
  EXPECT_THAT(indexes, ElementsAre(2u, 3u, 4u));
  EXPECT_THAT(counted, ElementsAre(2u, 3u, 4u));
  EXPECT_EQ(answer.counts.entries().size(), 2u);
}

// The likeliest token beside the one that it draws, if that is not much likelier.
TEST(ModelDrafter, ABranchIsTheTokenThatCameNext) {
  const auto asked = [](const Answer& answer) {
    DraftRequest request = answer.Request(3);
    request.most_branch = 4;
    return request;
  };
  const struct {
    const char* name;
    float first, second;  // log-probabilities of the fake's token and of the other one
    bool is_branch;
  } cases[] = {{"nearly as likely", -0.7f, -0.9f, true},
               {"drawn, though another is likelier", -2, -0.2f, true},
               {"sure", -0.01f, -5, false}};
  for (const auto& c : cases) {
    const Answer answer(0, 10);
    const int32_t token = answer.Next(), other = (token + 1) % int32_t{kVocab};
    ModelDrafter drafter(SmallOptions(),
                         Fake({.top =
                                   [&](int32_t chosen) {
                                     EXPECT_EQ(chosen, token) << "asked for once a draft";
                                     std::vector<TokenLogprob> top = {{token, c.first}, {other, c.second}};
                                     if (c.second > c.first) std::swap(top[0], top[1]);
                                     return top;
                                   },
                               .logprob = c.first}));
    const Drafts drafts = Propose(drafter, {asked(answer)});
    EXPECT_EQ(drafts.tokens[0], Said(answer, 3)) << c.name;
    EXPECT_EQ(drafts.branches.at(0), c.is_branch ? std::vector{other} : std::vector<int32_t>()) << c.name;
    EXPECT_THAT(drafts.passes, ElementsAre(10u, 1u, 1u)) << c.name;
    EXPECT_THAT(Propose(drafter, {answer.Request(3)}).branches.at(0), IsEmpty()) << "nobody asked";
  }
}

TEST(ModelDrafter, ACallWithAPassThatWasTheFirstOfItsKindTellsNoCosts) {
  uint32_t runs = 0;
  ModelDrafter drafter(SmallOptions(),
                       Fake({.is_first_of_its_kind = [&](const StepPlan&) { return ++runs == 2; }}));
  Answer answer(0, 10);
  const Drafts first = Propose(drafter, {answer.Request(3)});
  EXPECT_EQ(first.tokens[0], Said(answer, 3));
  EXPECT_THAT(first.passes, IsEmpty());
  answer.Add(answer.Next());
  EXPECT_THAT(Propose(drafter, {answer.Request(3)}).passes, ElementsAre(1u, 1u, 1u));
}

TEST(ModelDrafter, ANumericErrorEndsOneDraftALostDeviceAll) {
  bool is_lost = false;
  ModelDrafter drafter(SmallOptions(),
                       Fake({.fail_sequence =
                                 [](const PlannedSequence& part) {
                                   return part.id == 1 && part.sample_index == 2 ? Internal("NaN") : Status();
                                 },
                             .lose_device = [&] { return is_lost ? Internal("gone") : Status(); }}));
  const Answer good(0, 5), bad(1, 5);
  const Drafts drafts = Propose(drafter, {good.Request(4), bad.Request(4)});
  EXPECT_EQ(drafts.tokens[0], Said(good, 4));
  EXPECT_EQ(drafts.tokens[1], Said(bad, 2));
  EXPECT_EQ(drafter.MissingTokens(bad.Request(4)), 5u);
  is_lost = true;
  const DraftRequest request = good.Request(4);
  EXPECT_EQ(drafter.Propose({&request, 1}).status().code(), StatusCode::kInternal);
}

}  // namespace
}  // namespace terrace
