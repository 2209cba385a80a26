#include "tools/optimize/calibration.h"

#include <algorithm>
#include <fstream>

#include "base/json.h"
#include "gtest/gtest.h"
#include "tools/optimize/synthetic_text.h"

namespace terrace {
namespace {

ModelConfig Config() {
  ModelConfig config;
  config.vocab_size = 300;
  config.context_length = 64;
  return config;
}

std::string Written(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "calibration_" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

const char* const kRows =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"expected\": \"yes\", \"id\": 1}\n"
    "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n"
    "{\"messages\": [], \"expected\": \"Once upon\"}\n"
    "{\"text\": \"a time\", \"expected\": \"not this\"}\n";

TEST(LoadCalibration, RendersChatsAndTakesTextsAsTheyAre) {
  const TextAssets text = ByteLevelText();
  const auto set = LoadCalibration({.path = Written("rows", kRows)}, text, Config());
  ASSERT_TRUE(set.ok()) << set.status();
  ASSERT_EQ(set->sequences.size(), 4u);
  EXPECT_EQ(set->sequences[0],
            text.EncodeChat({{"user", "hi"}, {"assistant", "yes"}}, /*add_generation_prompt=*/false).value());
  EXPECT_EQ(set->sequences[1], text.EncodeChat({{"user", "hi"}}).value());
  EXPECT_EQ(set->sequences[2], text.EncodePrompt("Once upon"));
  EXPECT_EQ(set->sequences[3], text.EncodePrompt("a time"));
  EXPECT_EQ(set->rows, 4u);
  EXPECT_EQ(set->digest, HashBytes(kRows));
  size_t tokens = 0;
  for (const auto& sequence : set->sequences) tokens += sequence.size();
  EXPECT_EQ(set->tokens, tokens);
}

TEST(LoadCalibration, DrawsRowsByTheSeedAndKeepsTheirOrder) {
  std::string rows;
  for (int i = 0; i < 50; ++i) rows += Concat("{\"text\": \"", std::string(i + 1, 'x'), "\"}\n");
  const std::string path = Written("draw", rows);
  const auto sizes = [&](size_t samples, uint64_t seed) {
    const auto set =
        LoadCalibration({.path = path, .samples = samples, .seed = seed}, ByteLevelText(), Config());
    CHECK(set.ok(), Message(set.status()));
    std::vector<size_t> out;
    for (const auto& sequence : set->sequences) out.push_back(sequence.size());
    return out;
  };
  const auto ten = sizes(10, 1);
  EXPECT_EQ(ten.size(), 10u);
  EXPECT_TRUE(std::is_sorted(ten.begin(), ten.end()));
  EXPECT_EQ(sizes(10, 1), ten);
  EXPECT_NE(sizes(10, 2), ten);
  EXPECT_EQ(sizes(0, 1).size(), 50u);
  EXPECT_EQ(sizes(80, 1).size(), 50u);
}

TEST(LoadCalibration, CutsRowsAtTheContext) {
  const std::string path = Written("long", Concat("{\"text\": \"", std::string(500, 'x'), "\"}"));
  const auto set = LoadCalibration({.path = path}, ByteLevelText(), Config());
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->sequences[0].size(), 64u);
}

TEST(LoadCalibration, WhatCannotBeUsedIsToldWithItsLine) {
  TextAssets no_template = ByteLevelText();
  no_template.chat_template = nullptr;
  ModelConfig small = Config();
  small.vocab_size = 100;  // another model than the tokenizer's
  const TextAssets text = ByteLevelText();
  const struct {
    const char *name, *rows;
    const TextAssets& text;
    ModelConfig config;
    const char* mention;
  } cases[] = {
      {"empty", "", text, Config(), "no rows"},
      {"json", "{\"text\": \"a\"}\n{\"text\": \n", text, Config(), ":2:"},
      {"list", "[]", text, Config(), ":1: not a JSON object"},
      {"nothing", "{\"id\": 1}", text, Config(), "has none of \"messages\", \"text\" and \"expected\""},
      {"number", "{\"text\": 1}", text, Config(), "\"text\" is not a string"},
      {"messages", "{\"messages\": \"hi\"}", text, Config(), "\"messages\" is not a list"},
      {"role", "{\"messages\": [{\"content\": \"hi\"}]}", text, Config(), "\"role\""},
      {"template", kRows, no_template, Config(), "no chat template"},
      {"vocabulary", kRows, text, small, "vocabulary of 100"}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const Status status = LoadCalibration({.path = Written(c.name, c.rows)}, c.text, c.config).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
    EXPECT_NE(Message(status).find(c.mention), std::string::npos) << status;
  }
  EXPECT_EQ(LoadCalibration({.path = testing::TempDir() + "absent"}, text, Config()).status().code(),
            StatusCode::kNotFound);
}

}  // namespace
}  // namespace terrace
