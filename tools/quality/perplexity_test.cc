#include "tools/quality/perplexity.h"

#include <cmath>

#include "gtest/gtest.h"
#include "tools/quality/divergence.h"

namespace terrace {
namespace {

std::unique_ptr<ScoringModel> Open(uint32_t max_tokens = 0) {
  auto opened = ScoringModel::Open(
      {.model = "models/terrace-demo-nano", .threads = 1, .max_tokens = max_tokens, .compute = "f32"});
  CHECK(opened.ok(), Message(opened.status()));
  return *std::move(opened);
}

std::vector<int32_t> TokensOf(const ScoringModel& model) {
  std::string text;
  for (int i = 0; i < 20; ++i) text += Concat("Once upon a time there were ", i, " little dogs. ");
  return model.files().text->EncodePrompt(text);
}

// Of the tokens of `text` from `first` on, one window.
std::vector<double> PlainSurprises(ScoringModel& model, std::span<const int32_t> text, size_t first) {
  const size_t vocabulary = model.files().config.vocab_size;
  std::vector<double> out;
  const std::span<const float> logits = model.Score(text, 0, text.size());
  for (size_t token = first; token < text.size(); ++token) {
    const auto row = logits.subspan((token - 1) * vocabulary, vocabulary);
    double sum = 0;
    for (const float logit : row) sum += std::exp(double{logit});
    out.push_back(std::log(sum) - row[static_cast<size_t>(text[token])]);
  }
  return out;
}

void ExpectNear(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-9) << i;
}

TEST(Surprises, AreThoseOfTheDistributionBehindAllTokensBefore) {
  const auto model = Open();
  const auto tokens = TokensOf(*model);
  ASSERT_GT(tokens.size(), 150u);
  const auto got = Surprises(*model, tokens, {.window = model->max_tokens(), .stride = 1});
  ASSERT_TRUE(got.ok()) << got.status();
  ExpectNear(*got, PlainSurprises(*model, tokens, 1));
}

TEST(Surprises, OfWindowsAreThoseOfEachWindowAlone) {
  const auto model = Open(), small = Open(/*max_tokens=*/70);
  const auto tokens = TokensOf(*model);
  for (const auto& [window, stride] :
       {std::pair<uint32_t, uint32_t>(70, 35), {70, 69}, {70, 1}, {2, 1}, {33, 10}}) {
    SCOPED_TRACE(testing::Message() << window << " by " << stride);
    std::vector<double> want = PlainSurprises(*model, std::span(tokens).first(window), 1);
    for (size_t begin = stride; want.size() + 1 < tokens.size(); begin += stride) {
      const size_t count = std::min<size_t>(window, tokens.size() - begin), first = want.size() + 1 - begin;
      const auto more = PlainSurprises(*model, std::span(tokens).subspan(begin, count), first);
      want.insert(want.end(), more.begin(), more.end());
    }
    std::vector<size_t> done;
    const auto got = Surprises(*small, tokens, {window, stride}, [&](size_t tokens_done) {
      done.push_back(tokens_done);
      return Status();
    });
    ASSERT_TRUE(got.ok()) << got.status();
    ASSERT_EQ(got->size(), tokens.size() - 1);
    ExpectNear(*got, want);
    EXPECT_EQ(done.back(), tokens.size());
  }
}

TEST(Surprises, GiveThePerplexityThatAComparisonTells) {
  const auto model = Open(), same = Open();
  const auto tokens = TokensOf(*model);
  DivergenceMeter meter;
  ASSERT_TRUE(AddDivergence(*model, *same, tokens, meter).ok());
  Surprise all;
  all.Add(*Surprises(*model, tokens, {.window = model->max_tokens(), .stride = 1}));
  EXPECT_EQ(all.tokens, meter.Finish().positions);
  EXPECT_NEAR(all.perplexity(), meter.Finish().candidate_perplexity, 1e-9 * all.perplexity());
}

TEST(Surprises, OfLessThanTwoTokensThereAreNone) {
  const auto model = Open();
  EXPECT_TRUE(Surprises(*model, {}, {.window = 8, .stride = 4})->empty());
  EXPECT_TRUE(Surprises(*model, std::vector{5}, {.window = 8, .stride = 4})->empty());
  EXPECT_EQ(Surprise().perplexity(), 1);
}

TEST(Surprises, AnErrorOfTheCallerEndsThem) {
  const auto model = Open();
  const auto stopped = Surprises(*model, TokensOf(*model), {.window = 8, .stride = 4},
                                 [](size_t) { return Cancelled("interrupted"); });
  EXPECT_EQ(stopped.status(), Cancelled("interrupted"));
}

}  // namespace
}  // namespace terrace
