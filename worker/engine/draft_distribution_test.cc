// Sampled answers whose drafts come from another model follow the distribution of this model, as if nothing
// had been drafted; and with one seed they are the same tokens. No model: the logits are a table.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "base/rng.h"
#include "gtest/gtest.h"
#include "worker/engine/executor.h"
#include "worker/sample/sampler.h"

namespace terrace {
namespace {

constexpr size_t kVocab = 5, kAnswer = 3;              // tokens
constexpr size_t kAnswers = kVocab * kVocab * kVocab;  // that there are
constexpr uint64_t kDraws = 60'000, kManyDraws = 1'000'000;
constexpr uint64_t kSeed = 1'000'000;                    // of the first draw; then one more each
constexpr uint64_t kDraftStream = 7, kLengthStream = 8;  // beside that of the sampler, 0

using Row = std::array<float, kVocab>;

// Logits that depend on the token before.
class Model {
 public:
  explicit Model(uint64_t seed) {
    for (size_t last = 0; last < kVocab; ++last) {
      for (size_t i = 0; i < kVocab; ++i)
        rows_[last][i] = static_cast<float>(3 * (RandomUniform(seed, last * kVocab + i) - 0.5));
    }
  }
  const Row& After(size_t last) const { return rows_[last]; }

 private:
  std::array<Row, kVocab> rows_ = {};
};

const Model kModel(1), kOther(2);

// By definition: logit bias, presence penalty, temperature, top-k, which here has no ties, top-p, min-p.
std::vector<double> Probabilities(const Row& logits, const SamplingParams& params,
                                  std::span<const int32_t> answer) {
  std::vector<double> values(logits.begin(), logits.end());
  for (const auto& [token, bias] : params.logit_bias) values[static_cast<size_t>(token)] += bias;
  std::vector<bool> is_said(kVocab);
  for (const int32_t token : answer) is_said[static_cast<size_t>(token)] = true;
  for (size_t i = 0; i < kVocab; ++i) {
    if (is_said[i]) values[i] -= params.presence_penalty;
  }
  std::vector<double> weights(kVocab);
  double total = 0;
  for (size_t i = 0; i < kVocab; ++i) {
    int32_t above = 0;
    for (const double other : values) above += other > values[i];
    if (params.top_k > 0 && above >= params.top_k) continue;
    total += weights[i] = std::exp(values[i] / params.temperature);
  }
  std::vector<size_t> order(kVocab);  // the most likely first
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return weights[a] > weights[b]; });
  const double least = params.min_p * weights[order[0]];
  double above = 0, kept = 0;  // of more likely tokens
  for (const size_t token : order) {
    const bool is_kept = above < params.top_p * total && weights[token] >= least;
    above += weights[token];
    if (!is_kept) weights[token] = 0;
    kept += weights[token];
  }
  for (double& weight : weights) weight /= kept;
  return weights;
}

// Of every answer to the prompt, whose last token is 0.
std::vector<double> AnswerProbabilities(const Model& model, const SamplingParams& params) {
  std::vector<double> out(kAnswers);
  for (size_t i = 0; i < kAnswers; ++i) {
    const std::array<int32_t, kAnswer> answer = {static_cast<int32_t>(i / kVocab / kVocab),
                                                 static_cast<int32_t>(i / kVocab % kVocab),
                                                 static_cast<int32_t>(i % kVocab)};
    out[i] = 1;
    size_t last = 0;
    for (size_t said = 0; said < kAnswer; ++said) {
      const auto next = static_cast<size_t>(answer[said]);
      out[i] *= Probabilities(model.After(last), params, std::span(answer).first(said))[next];
      last = next;
    }
  }
  return out;
}

size_t IndexOf(const std::vector<int32_t>& answer) {
  size_t index = 0;
  for (const int32_t token : answer) index = index * kVocab + static_cast<size_t>(token);
  return index;
}

// How an answer is drafted, step by step.
enum class DraftedBy { kNobody, kOtherDraws, kTheSameDraws, kTrees };

constexpr DraftedBy kEveryDrafter[] = {DraftedBy::kOtherDraws, DraftedBy::kTheSameDraws, DraftedBy::kTrees};

class Answering {
 public:
  std::vector<int32_t> Answer(SamplingParams params, DraftedBy drafts) {
    std::vector<int32_t> context = {0};  // the prompt's last token, then the answer
    TokenCounts counts;
    for (uint64_t step = 0; context.size() <= kAnswer; ++step) {
      const size_t said = context.size() - 1;
      std::vector<int32_t> tokens = {context.back()};
      if (drafts != DraftedBy::kNobody) Propose(params, drafts, step, said, tokens);
      SequenceOutput output = Verify(params, counts, said, tokens);
      if (drafts == DraftedBy::kTrees && tokens.size() > 1) {  // as the Scheduler decides between both
        const SequenceOutput branch = Verify(params, counts, said, Branch(tokens));
        if (branch.tokens.size() > output.tokens.size()) {
          output = branch;
          ++branches_;
        }
      }
      proposed_ += tokens.size() - 1;
      accepted_ += output.tokens.size() - 1;
      for (const SampledToken& token : output.tokens) {
        if (context.size() > kAnswer) break;  // one more than was wanted
        context.push_back(token.token);
        counts.AddGenerated(token.token);
      }
    }
    return {context.begin() + 1, context.end()};
  }

  double acceptance() const { return static_cast<double>(accepted_) / static_cast<double>(proposed_); }
  uint64_t branches() const { return branches_; }  // that the answers went on with

 private:
  // `tokens`: the last known one, and what is proposed behind it.
  SequenceOutput Verify(const SamplingParams& params, const TokenCounts& counts, size_t said,
                        const std::vector<int32_t>& tokens) {
    PlannedSequence part;
    part.tokens = tokens;
    part.sample = true;
    part.proposed = static_cast<uint32_t>(tokens.size() - 1);
    part.sampling = &params;
    part.counts = &counts;
    part.sample_index = said;
    SequenceOutput output = ChooseTokens(part, [&](uint32_t row, const TokenCounts& so_far, uint64_t index) {
      return sampler_.Sample(kModel.After(static_cast<size_t>(tokens[row])), params, so_far, index, {});
    });
    EXPECT_TRUE(output.error.ok());
    return output;
  }

  // As long as `tokens`, with another token first; those behind it are the likeliest of the other model.
  static std::vector<int32_t> Branch(const std::vector<int32_t>& tokens) {
    std::vector<int32_t> branch = {tokens[0], (tokens[1] + 1) % static_cast<int32_t>(kVocab)};
    while (branch.size() < tokens.size()) {
      const Row& row = kOther.After(static_cast<size_t>(branch.back()));
      branch.push_back(static_cast<int32_t>(std::ranges::max_element(row) - row.begin()));
    }
    return branch;
  }

  // 0 to all that is left, by the other model: with the draws that the answer's own tokens take, as a small
  // tier with the request's seed has them, or with others.
  void Propose(SamplingParams params, DraftedBy drafts, uint64_t step, size_t said,
               std::vector<int32_t>& tokens) {
    const double share = RandomUniform(params.seed, step, kLengthStream);
    const auto length = static_cast<size_t>(share * static_cast<double>(kAnswer - said + 1));
    if (drafts != DraftedBy::kTheSameDraws) params.seed = RandomBits(params.seed, step, kDraftStream);
    params.presence_penalty = 0;
    params.top_k = 0;
    for (size_t i = 0; i < length; ++i) {
      const auto logits = kOther.After(static_cast<size_t>(tokens.back()));
      tokens.push_back(sampler_.Sample(logits, params, {}, said + i, {})->token);
    }
  }

  Sampler sampler_;
  uint64_t proposed_ = 0, accepted_ = 0, branches_ = 0;
};

struct Case {
  const char* name;
  SamplingParams params;
};
const std::vector<Case>& Cases() {
  static const auto* const cases = new std::vector<Case>{
      {"plain", {}},
      {"cold", {.temperature = 0.6f}},
      {"cut, with a penalty", {.top_k = 3, .presence_penalty = 0.7f}},
      {"top-p", {.top_p = 0.95f}},
      {"min-p, biased", {.min_p = 0.1f, .logit_bias = {{2, 0.7f}, {4, -0.5f}}}},
  };
  return *cases;
}

// Chi-square over the answers expected at least 5 times. Its mean is the number of degrees of freedom k, its
// deviation sqrt(2 k): with k of 20 and more, 7 deviations are passed less than once in 100,000 times, and
// the seeds are fixed.
double Deviations(const std::vector<double>& probabilities, const std::vector<uint64_t>& counts) {
  const auto draws = static_cast<double>(std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  double chi_square = 0, freedom = -1;
  for (size_t i = 0; i < kAnswers; ++i) {
    const double expected = probabilities[i] * draws;
    if (expected < 5) continue;
    const double difference = static_cast<double>(counts[i]) - expected;
    chi_square += difference * difference / expected;
    ++freedom;
  }
  EXPECT_GT(freedom, 15) << "too few answers to tell";
  return (chi_square - freedom) / std::sqrt(2 * freedom);
}

TEST(DraftDistribution, SampledAnswersFollowTheModelWhateverAnotherOneDrafts) {
  for (const Case& c : Cases()) {
    const auto wanted = AnswerProbabilities(kModel, c.params), others = AnswerProbabilities(kOther, c.params);
    for (const DraftedBy drafts : kEveryDrafter) {
      SCOPED_TRACE(testing::Message()
                   << c.name << ", drafts " << static_cast<int>(drafts) << ", seeds from " << kSeed);
      Answering answering;
      std::vector<uint64_t> counts(kAnswers);
      SamplingParams params = c.params;
      const bool is_closest = &c == &Cases().front() && drafts == DraftedBy::kOtherDraws;
      for (uint64_t draw = 0; draw < (is_closest ? kManyDraws : kDraws); ++draw) {
        params.seed = kSeed + draw;
        ++counts[IndexOf(answering.Answer(params, drafts))];
      }
      EXPECT_LT(Deviations(wanted, counts), 7);
      EXPECT_GT(Deviations(others, counts), 50) << "the drafts' own distribution is another one";
      for (size_t i = 0; i < kAnswers; ++i) EXPECT_TRUE(wanted[i] > 0 || counts[i] == 0) << "answer " << i;
      EXPECT_GT(answering.acceptance(), 0.02) << "some are right";
      EXPECT_LT(answering.acceptance(), 0.9) << "some are wrong";
      EXPECT_EQ(answering.branches() > 1'000, drafts == DraftedBy::kTrees);
    }
  }
}

TEST(DraftDistribution, OneSeedGivesTheSameAnswerWithAndWithoutDrafts) {
  Answering answering;
  for (const Case& c : Cases()) {
    SamplingParams params = c.params;
    for (uint64_t draw = 0; draw < 20'000; ++draw) {
      params.seed = kSeed + draw;
      const auto wanted = answering.Answer(params, DraftedBy::kNobody);
      for (const DraftedBy drafts : kEveryDrafter)
        ASSERT_EQ(answering.Answer(params, drafts), wanted) << c.name << ", seed " << params.seed;
    }
  }
}

}  // namespace
}  // namespace terrace
