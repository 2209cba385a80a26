#include "router/tier/records_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "base/descriptor.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router/tier/testing_records.h"

namespace terrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class RecordsFileTest : public testing::Test {
 protected:
  RecordsFileTest() { std::filesystem::remove_all(path_); }
  void Put(const std::string& text) const {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << text;
  }
  std::string Text() const { return ReadFile(path_).value(); }
  Status Append(RecordsFile& file, size_t row) const { return file.Append(drawn_.tiers, drawn_.rows[row]); }
  // The file of so many rows, in their order.
  std::string Expected(size_t rows) const {
    Records records{.tiers = drawn_.tiers};
    for (size_t i = 0; i < rows; ++i) {
      records.rows.push_back(drawn_.rows[i]);
      records.rows.back().id = Concat(i + 1);
    }
    return RecordsText(records);
  }

  const std::string path_ = testing::TempDir() + "records_file_test.jsonl";
  const Records drawn_ = DrawRecords(8, /*seed=*/1);
};

TEST_F(RecordsFileTest, HasWhatCalibrateReadsAndIsItsOwnersAlone) {
  RecordsFile file(path_, 100);
  for (size_t row = 0; row < 4; ++row) {
    ASSERT_EQ(Append(file, row), Status());
    EXPECT_EQ(Text(), Expected(row + 1)) << "at every moment";
  }
  EXPECT_TRUE(ParseRecords(Text()).ok());
  struct stat info = {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(RecordsFileTest, IsGoneOnWithByWhoeverComesNextAndWhatACrashLeftOfALineIsCutOff) {
  const std::string two = Expected(2);
  for (size_t bytes = 0; bytes <= two.size(); ++bytes) {
    Put(two.substr(0, bytes));
    const size_t lines = static_cast<size_t>(std::ranges::count(two.substr(0, bytes), '\n'));
    const size_t rows = lines == 0 ? 0 : lines - 1;
    RecordsFile file(path_, 100);
    ASSERT_EQ(Append(file, rows), Status()) << bytes;
    ASSERT_EQ(Text(), Expected(rows + 1)) << bytes;
  }
}

TEST_F(RecordsFileTest, SeveralMayWriteInTurn) {
  RecordsFile files[] = {{path_, 100}, {path_, 100}};
  for (size_t row = 0; row < 6; ++row) ASSERT_EQ(Append(files[row % 3 == 0], row), Status());
  EXPECT_EQ(Text(), Expected(6));
}

TEST_F(RecordsFileTest, RecordsOfOtherTiersAreNotMixed) {
  std::vector<std::vector<RecordedTier>> others;
  for (size_t i = 0; i < drawn_.tiers.size(); ++i) {
    for (std::string RecordedTier::*const member :
         {&RecordedTier::name, &RecordedTier::model_digest, &RecordedTier::text_digest}) {
      others.push_back(drawn_.tiers);
      (others.back()[i].*member) += "'";
    }
    others.push_back(drawn_.tiers);
    others.back()[i].parameters += 1;
  }
  others.push_back({drawn_.tiers[1], drawn_.tiers[0], drawn_.tiers[2]});
  others.push_back({drawn_.tiers[0], drawn_.tiers[1]});
  RecordsFile same(path_, 100);
  ASSERT_EQ(Append(same, 0), Status());
  for (const auto& tiers : others) {
    RecordsFile next(path_, 100);
    for (RecordsFile* file : {&same, &next}) {
      EXPECT_EQ(file->Append(tiers, drawn_.rows[1]).code(), StatusCode::kFailedPrecondition);
      EXPECT_EQ(Text(), Expected(1));
    }
  }
  std::vector<RecordedTier> other = drawn_.tiers;
  other[1].model_digest = "another";
  EXPECT_THAT(Message(same.Append(other, drawn_.rows[1])),
              AllOf(HasSubstr(path_), HasSubstr("small (model m1"), HasSubstr("small (model another")));
  ASSERT_EQ(Append(same, 1), Status());
  EXPECT_EQ(Text(), Expected(2));
}

TEST_F(RecordsFileTest, WhatIsNoFileOfRecordsIsLeftAlone) {
  for (const char* text : {"mine", "mine\n", "{}\n", "{\"format\":\"terrace-records-9\",\"tiers\":[]}\n"}) {
    Put(text);
    RecordsFile file(path_, 100);
    EXPECT_EQ(Append(file, 0).code(), StatusCode::kFailedPrecondition) << text;
    EXPECT_EQ(Text(), text);
  }
}

TEST_F(RecordsFileTest, WhatIsRefusedIsLeftAsItIsItsLastLineToo) {
  const std::string text = Expected(2) + "{\"id\":";
  std::vector<RecordedTier> other = drawn_.tiers;
  other[1].model_digest = "another";
  for (const bool is_full : {false, true}) {
    Put(text);
    RecordsFile file(path_, is_full ? 2 : 100);
    const Status status = file.Append(is_full ? drawn_.tiers : other, drawn_.rows[2]);
    EXPECT_EQ(status.code(), is_full ? StatusCode::kResourceExhausted : StatusCode::kFailedPrecondition);
    EXPECT_EQ(Text(), text);
  }
}

TEST_F(RecordsFileTest, ATierThatDoesNotSayItsParametersHasNoCost) {
  std::vector<RecordedTier> tiers = drawn_.tiers;
  tiers[1].parameters = 0;
  RecordsFile file(path_, 100);
  const Status status = file.Append(tiers, drawn_.rows[0]);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("small"));
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(RecordsFileTest, HoldsAtMostSoMany) {
  RecordsFile file(path_, 2), more(path_, 3);
  for (size_t row = 0; row < 2; ++row) ASSERT_EQ(Append(file, row), Status());
  EXPECT_EQ(Append(file, 2).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Text(), Expected(2));
  EXPECT_EQ(Append(more, 2), Status());
  EXPECT_EQ(Append(more, 3).code(), StatusCode::kResourceExhausted);
}

TEST_F(RecordsFileTest, OneThatIsMovedAwayIsFollowedByAnother) {
  RecordsFile file(path_, 100);
  ASSERT_EQ(Append(file, 0), Status());
  std::filesystem::rename(path_, path_ + ".1");
  ASSERT_EQ(Append(file, 0), Status());
  EXPECT_EQ(Text(), Expected(1));
  EXPECT_EQ(ReadFile(path_ + ".1").value(), Expected(1));
}

TEST_F(RecordsFileTest, WhatCannotBeWrittenNowMayBeLater) {
  RecordsFile file(path_, 100);
  std::filesystem::create_directory(path_);
  EXPECT_EQ(Append(file, 0).code(), StatusCode::kUnavailable);
  std::filesystem::remove(path_);
  ASSERT_EQ(Append(file, 0), Status());
  {
    const Descriptor other(open(path_.c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_EQ(flock(other.number(), LOCK_EX), 0);
    EXPECT_EQ(Append(file, 1).code(), StatusCode::kUnavailable) << "another one writes it";
  }
  ASSERT_EQ(Append(file, 1), Status());
  EXPECT_EQ(Text(), Expected(2));
}

TEST_F(RecordsFileTest, AFullDiskLeavesNoHalfLine) {
  RecordsFile file(path_, 100);
  ASSERT_EQ(Append(file, 0), Status());
  const size_t line = Expected(2).size() - Expected(1).size();
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto previous = std::signal(SIGXFSZ, SIG_IGN);  // the write fails instead
  for (const size_t room : {size_t{0}, size_t{1}, line / 2, line - 1}) {
    const rlimit limit = {.rlim_cur = Expected(1).size() + room, .rlim_max = before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const Status status = Append(file, 1);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << room;
    EXPECT_EQ(Text(), Expected(1)) << room;
  }
  std::signal(SIGXFSZ, previous);
  ASSERT_EQ(Append(file, 1), Status());
  EXPECT_EQ(Text(), Expected(2));
}

}  // namespace
}  // namespace terrace
