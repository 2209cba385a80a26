#include "tools/distill/training_rows.h"

#include <fstream>

#include "gtest/gtest.h"
#include "tools/optimize/synthetic_text.h"

namespace terrace {
namespace {

constexpr uint32_t kVocab = 300;
constexpr size_t kMost = 64;

std::string Written(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "training_rows_" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

StatusOr<TrainingRows> Load(const std::string& name, const std::string& text, size_t most = kMost,
                            const RowWeights& weights = {}) {
  return LoadTrainingRows({Written(name, text)}, ByteLevelText(), kVocab, most, weights);
}

TEST(TrainingRows, OfAChatTheAnswerCountsInFullAndThePromptLess) {
  const auto rows =
      Load("chat",
           "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"expected\": \"yes\", \"id\": 1}\n");
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->rows.size(), 1u);
  const TrainingRow& row = rows->rows[0];
  const TextAssets text = ByteLevelText();
  EXPECT_EQ(row.tokens,
            text.EncodeChat({{"user", "hi"}, {"assistant", "yes"}}, /*add_generation_prompt=*/false).value());
  const size_t prompt = text.EncodeChat({{"user", "hi"}}).value().size();
  EXPECT_EQ(row.answer, prompt);
  const RowWeights weights = {.prompt = 0.25, .text = 0.5};
  for (size_t token = 1; token < row.tokens.size(); ++token)
    EXPECT_EQ(weights.Of(row, token), token < prompt ? 0.25 : 1) << token;
  EXPECT_EQ(rows->tokens, row.tokens.size());
}

TEST(TrainingRows, ALastMessageOfTheAssistantIsTheAnswer) {
  const auto rows =
      Load("last",
           "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"expected\": \"yes\"}\n"
           "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"},"
           " {\"role\": \"assistant\", \"content\": \"yes\"}]}\n");
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->rows.size(), 2u);
  EXPECT_EQ(rows->rows[0].tokens, rows->rows[1].tokens);
  EXPECT_EQ(rows->rows[0].answer, rows->rows[1].answer);
}

TEST(TrainingRows, PlainTextCountsAlikeFromItsFirstPredictedToken) {
  const auto rows = Load("plain", "{\"text\": \"once\"}\n{\"messages\": [], \"expected\": \"once\"}\n");
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->rows.size(), 2u);
  for (const TrainingRow& row : rows->rows) {
    EXPECT_EQ(row.tokens, ByteLevelText().EncodePrompt("once"));
    for (size_t token = 1; token < row.tokens.size(); ++token)
      EXPECT_EQ((RowWeights{.prompt = 0.25, .text = 0.5}).Of(row, token), 0.5);
  }
}

TEST(TrainingRows, LongRowsAreCutAndRowsWithNothingToPredictLeftOut) {
  const std::string chat =
      "{\"messages\": [{\"role\": \"user\", \"content\": \"a long prompt\"}], \"expected\": \"yes\"}\n";
  const auto rows = Load("cut", chat + "{\"text\": \"\"}\n" + "{\"text\": \"abc\"}\n", /*most=*/6,
                         {.prompt = 0, .text = 1});
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(rows->cut, 1u);       // the chat,
  EXPECT_EQ(rows->left_out, 2u);  // of which only the prompt is left, and the empty text
  ASSERT_EQ(rows->rows.size(), 1u);
  EXPECT_EQ(rows->rows[0].tokens.size(), 4u);
  const auto with_prompts = Load("cut", chat, /*most=*/6);
  ASSERT_TRUE(with_prompts.ok());
  EXPECT_EQ(with_prompts->rows[0].tokens.size(), 6u);
  EXPECT_EQ(with_prompts->rows[0].answer, 6u);
}

TEST(TrainingRows, TheDigestIsOfTokensAndOfWhereAnswersBegin) {
  const TrainingRow row = {.tokens = {1, 2, 3, 4}, .answer = 2, .is_chat = true};
  TrainingRow other_token = row, other_answer = row, plain = row;
  other_token.tokens[3] = 5;
  other_answer.answer = 3;
  plain.is_chat = false;
  EXPECT_EQ(RowsDigest({row}), RowsDigest({row}));
  for (const TrainingRow& other : {other_token, other_answer, plain})
    EXPECT_NE(RowsDigest({row}), RowsDigest({other}));
  EXPECT_NE(RowsDigest({row}), RowsDigest({row, row}));
}

TEST(TrainingRows, WhatCannotBeUsedIsToldWithItsLine) {
  const struct {
    const char *name, *text, *mention;
  } cases[] = {
      {"json", "{\"text\": \"a\"}\n{\"text\": \n", ":2:"},
      {"question", "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}", "without an answer"},
      {"alone", "{\"messages\": [{\"role\": \"assistant\", \"content\": \"hi\"}]}", "to no message"},
      {"none", "{\"text\": \"\"}\n", "no row has a token to predict"},
      {"empty", "", "no row has a token to predict"}};
  for (const auto& c : cases) {
    const Status status = Load(c.name, c.text).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << c.name << ": " << status;
    EXPECT_NE(Message(status).find(c.mention), std::string::npos) << c.name << ": " << status;
  }
  const Status small = LoadTrainingRows({Written("vocab", "{\"text\": \"z\"}")}, ByteLevelText(),
                                        /*vocab_size=*/100, kMost, {})
                           .status();
  EXPECT_EQ(small.code(), StatusCode::kDataLoss) << small;
  EXPECT_EQ(
      LoadTrainingRows({testing::TempDir() + "absent"}, ByteLevelText(), kVocab, kMost, {}).status().code(),
      StatusCode::kNotFound);
}

}  // namespace
}  // namespace terrace
