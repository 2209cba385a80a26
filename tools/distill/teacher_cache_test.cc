#include "tools/distill/teacher_cache.h"

#include <filesystem>
#include <fstream>

#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class TeacherCacheTest : public testing::Test {
 protected:
  TeacherCacheTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  // Rows of 3 and 1 positions, 2 tokens each.
  const std::vector<TrainingRow> rows_ = {{.tokens = {1, 2, 3, 4}}, {.tokens = {5, 6}}};
  const std::vector<TeacherRow> said_ = {
      {.tokens = {1, 2, 3, 4, 5, 6}, .log_probs = {-1, -2, -1, -3, -1, -4}, .log_rest = {-5, -6, -7}},
      {.tokens = {8, 9}, .log_probs = {-0.5, -2}, .log_rest = {-3}}};
  const TeacherCacheInfo info_ = {.teacher_digest = "t",
                                  .text_digest = "x",
                                  .rows_digest = "r",
                                  .temperature = 1.5,
                                  .top_k = 2,
                                  .vocab_size = 10};

  void Write() const {
    auto writer = TeacherCacheWriter::Create(path_, info_, rows_);
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_FALSE(fs::exists(path_));
    for (const TeacherRow& row : said_) ASSERT_EQ(writer->Append(row), Status());
    ASSERT_EQ(writer->Finish(), Status());
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "teacher_cache";
  const std::string path_ = folder_ / "cache";
};

TEST_F(TeacherCacheTest, HasOfEachRowWhatWasWritten) {
  Write();
  const auto cache = TeacherCache::Open(path_, info_, rows_);
  ASSERT_TRUE(cache.ok()) << cache.status();
  for (const size_t row : {1u, 0u}) {
    const auto said = (*cache)->Row(row);
    ASSERT_TRUE(said.ok()) << said.status();
    EXPECT_EQ(said->tokens, said_[row].tokens);
    EXPECT_EQ(said->log_probs, said_[row].log_probs);
    EXPECT_EQ(said->log_rest, said_[row].log_rest);
  }
}

TEST_F(TeacherCacheTest, OfAnotherTeacherOtherRowsOrOtherSettingsItIsRefusedByName) {
  Write();
  TeacherCacheInfo teacher = info_, text = info_, rows = info_, temperature = info_, top_k = info_;
  teacher.teacher_digest = "another";
  text.text_digest = "another";
  rows.rows_digest = "another";
  temperature.temperature = 2;
  top_k.top_k = 3;
  const std::pair<TeacherCacheInfo, const char*> cases[] = {
      {teacher, "teacher (\"t\" there, \"another\" here)"},
      {text, "text"},
      {rows, "rows"},
      {temperature, "temperature (1.5 there, 2.0 here)"},
      {top_k, "top_k (2 there, 3 here)"}};
  for (const auto& [info, mention] : cases) {
    const Status status = TeacherCache::Open(path_, info, rows_).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(Message(status), HasSubstr(mention));
  }
}

TEST_F(TeacherCacheTest, WhatIsNotAsItWasWrittenIsAnError) {
  EXPECT_EQ(TeacherCache::Open(path_, info_, rows_).status().code(), StatusCode::kNotFound);
  Write();
  EXPECT_EQ(TeacherCacheWriter::Create(path_, info_, rows_).status().code(), StatusCode::kInvalidArgument);
  const std::string bytes = ReadFile(path_).value();
  const size_t data = bytes.find('\n') + 1;
  for (size_t at = data; at < bytes.size(); ++at) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    std::ofstream(path_, std::ios::binary) << changed;
    const auto cache = TeacherCache::Open(path_, info_, rows_);
    ASSERT_TRUE(cache.ok()) << cache.status();
    EXPECT_EQ((*cache)->Row(0).ok() + (*cache)->Row(1).ok(), 1) << at;
  }
  for (const std::string& other :
       {std::string(), bytes.substr(0, data - 1), bytes.substr(0, bytes.size() - 1), bytes + "x",
        std::string("{}\n"), std::string("[1]\n")}) {
    std::ofstream(path_, std::ios::binary) << other;
    EXPECT_EQ(TeacherCache::Open(path_, info_, rows_).status().code(), StatusCode::kDataLoss) << other.size();
  }
}

TEST_F(TeacherCacheTest, OneThatWasNotFinishedIsNotThere) {
  { ASSERT_TRUE(TeacherCacheWriter::Create(path_, info_, rows_).ok()); }
  EXPECT_TRUE(fs::is_empty(folder_));
}

}  // namespace
}  // namespace terrace
