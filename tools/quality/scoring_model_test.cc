#include "tools/quality/scoring_model.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr char kNano[] = "models/terrace-demo-nano", kNanoGguf[] = "models/terrace-demo-nano.f16.gguf",
               kSmall[] = "models/terrace-demo-small";

std::unique_ptr<ScoringModel> Open(const std::string& model, const std::string& compute = "f32") {
  auto opened = ScoringModel::Open({.model = model, .threads = 1, .compute = compute});
  CHECK(opened.ok(), Message(opened.status()));
  return *std::move(opened);
}

std::vector<int32_t> TokensOf(const ScoringModel& model) {
  std::string text;
  for (int i = 0; i < 20; ++i) text += "Once upon a time there was a little dog. ";
  return model.files().text->EncodePrompt(text);
}

Divergence Between(ScoringModel& candidate, ScoringModel& baseline) {
  DivergenceMeter meter;
  const Status status = AddDivergence(candidate, baseline, TokensOf(candidate), meter);
  CHECK(status.ok(), Message(status));
  return meter.Finish();
}

TEST(ScoringModel, PiecesGiveTheSameBitsAsTheWhole) {
  const auto model = Open(kNano);
  const std::vector<int32_t> tokens = TokensOf(*model);
  ASSERT_GT(tokens.size(), 100u);
  const std::span<const float> whole = model->Score(tokens, 0, 100);
  const std::vector<float> want(whole.begin(), whole.end());
  std::vector<float> got;
  for (const auto& [first, count] : {std::pair<size_t, size_t>(0, 33), {33, 1}, {34, 66}}) {
    const std::span<const float> piece = model->Score(tokens, first, count);
    got.insert(got.end(), piece.begin(), piece.end());
  }
  EXPECT_EQ(got, want);
}

TEST(AddDivergence, OfOneModelInTwoFormatsIsNothing) {
  const auto folder = Open(kNano), gguf = Open(kNanoGguf);
  const Divergence divergence = Between(*gguf, *folder);
  EXPECT_EQ(divergence.positions, TokensOf(*folder).size() - 1);
  EXPECT_LT(divergence.max_kl, 1e-7);
  EXPECT_EQ(divergence.flip_rate, 0);
  EXPECT_GT(divergence.baseline_perplexity, 1);
}

TEST(AddDivergence, GrowsWithWhatIsChanged) {
  const auto exact = Open(kNano), rounded = Open(kNano, "auto"), other = Open(kSmall);
  const Divergence little = Between(*rounded, *exact), much = Between(*other, *exact);
  EXPECT_GT(little.mean_kl, 0);
  EXPECT_LT(little.mean_kl, much.mean_kl);
  EXPECT_LE(little.mean_kl, little.p99_kl);
  EXPECT_LE(little.p99_kl, little.max_kl);
}

TEST(AddDivergence, GoesAsFarAsTheContextAndNoFurther) {
  auto opened = ScoringModel::Open({.model = kNano, .threads = 1, .max_tokens = 70});
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto whole = Open(kNano);
  DivergenceMeter meter;
  ASSERT_TRUE(AddDivergence(**opened, *whole, TokensOf(*whole), meter).ok());
  EXPECT_EQ(meter.Finish().positions, 70u);
  ASSERT_TRUE(AddDivergence(**opened, *whole, {}, meter).ok());
  ASSERT_TRUE(AddDivergence(**opened, *whole, std::vector{5}, meter).ok());
  EXPECT_EQ(meter.Finish().positions, 70u) << "behind a last token nothing is known";
}

TEST(ScoringModel, WhatCannotBeOpenedSaysWhy) {
  EXPECT_EQ(ScoringModel::Open({.model = "/absent"}).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ScoringModel::Open({.model = kNano, .compute = "x"}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(ScoringModel::Open({.model = kNano, .kv_dtype = "x"}).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace terrace
