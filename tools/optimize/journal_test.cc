#include "tools/optimize/journal.h"

#include <filesystem>
#include <fstream>

#include "gtest/gtest.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

class JournalTest : public testing::Test {
 protected:
  JournalTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  static std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }
  static std::string Text(const StatusOr<Journal::Part>& part) {
    return part.ok() ? std::string(reinterpret_cast<const char*>(part->bytes().data()), part->bytes().size())
                     : "";
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "journal";
  const std::string out_ = folder_ / "out";
};

TEST_F(JournalTest, PartsOutliveTheProcessThatSavedThem) {
  {
    auto journal = Journal::Open(out_ + "//", "job");
    ASSERT_TRUE(journal.ok()) << journal.status();
    EXPECT_EQ(journal->folder(), out_ + ".work");
    EXPECT_EQ(journal->Find("a").status().code(), StatusCode::kNotFound);
    EXPECT_EQ(journal->Save("a", Bytes("first")), Status());
    EXPECT_EQ(journal->Save("b", Bytes("")), Status());
    EXPECT_EQ(journal->Save("a", Bytes("second")), Status());
  }
  auto journal = Journal::Open(out_, "job");
  ASSERT_TRUE(journal.ok()) << journal.status();
  EXPECT_EQ(Text(journal->Find("a")), "second");
  const auto empty = journal->Find("b");
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(Text(empty), "");
  EXPECT_EQ(journal->Remove(), Status());
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(JournalTest, APartThatIsNotAsItWasSavedIsNone) {
  auto journal = Journal::Open(out_, "job");
  ASSERT_TRUE(journal.ok()) << journal.status();
  for (const size_t size :
       {size_t{0}, size_t{10}, size_t{40}}) {  // nothing, less than a checksum, a byte less
    ASSERT_EQ(journal->Save("a", Bytes("something")), Status());
    fs::resize_file(journal->folder() + "/a", size);
    EXPECT_EQ(journal->Find("a").status().code(), StatusCode::kNotFound) << size;
  }
  ASSERT_EQ(journal->Save("a", Bytes("something")), Status());
  std::fstream(journal->folder() + "/a", std::ios::in | std::ios::out | std::ios::binary) << "S";
  EXPECT_FALSE(journal->Find("a").ok());
  ASSERT_EQ(journal->Save("a", Bytes("something")), Status());
  EXPECT_EQ(Text(journal->Find("a")), "something");
}

TEST_F(JournalTest, WhatAKilledProcessLeftIsNotInTheWay) {
  fs::create_directory(out_ + ".work");
  std::ofstream(out_ + ".work/job.partial") << "half";  // killed while it began
  auto journal = Journal::Open(out_, "job");
  ASSERT_TRUE(journal.ok()) << journal.status();
  std::ofstream(journal->folder() + "/a.partial") << "half";
  EXPECT_EQ(journal->Save("a", Bytes("whole")), Status());
  EXPECT_EQ(Text(journal->Find("a")), "whole");
  EXPECT_FALSE(fs::exists(journal->folder() + "/a.partial"));
}

TEST_F(JournalTest, OfAnotherJobItTellsWhatDiffers) {
  const std::string job = R"({"model": {"digest": "a"}, "seed": 1, "same": [1]})";
  ASSERT_TRUE(Journal::Open(out_, job).ok());
  const Status other =
      Journal::Open(out_, R"({"model": {"digest": "b"}, "damping": 0.5, "seed": 1, "same": [1]})").status();
  EXPECT_EQ(other.code(), StatusCode::kInvalidArgument) << other;
  const std::string message = Message(other);
  for (const char* part : {"model.digest (\"a\" there, \"b\" here)", "damping (null there, 0.5 here)"})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  for (const char* part : {"seed", "same"}) EXPECT_EQ(message.find(part), std::string::npos) << message;
}

TEST_F(JournalTest, OtherJobsOtherFoldersAndOtherProcessesAreRefused) {
  {
    auto journal = Journal::Open(out_, "job");
    ASSERT_TRUE(journal.ok()) << journal.status();
    const Status busy = Journal::Open(out_, "job").status();
    EXPECT_EQ(busy.code(), StatusCode::kUnavailable) << busy;
  }
  EXPECT_TRUE(Journal::Open(out_, "job").ok());
  const Status other = Journal::Open(out_, "another job").status();
  EXPECT_EQ(other.code(), StatusCode::kInvalidArgument) << other;
  EXPECT_NE(Message(other).find(out_ + ".work"), std::string::npos) << other;

  EXPECT_EQ(Journal::Open("", "job").status().code(), StatusCode::kInvalidArgument);
  std::ofstream(out_) << "mine";  // or of a job that ended before it removed its folder
  const Status taken = Journal::Open(out_, "job").status();
  EXPECT_EQ(taken.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(Message(taken).find(out_ + ".work"), std::string::npos) << taken;
  const std::string strange = folder_ / "strange";
  fs::create_directory(strange + ".work");
  std::ofstream(strange + ".work/file") << "mine";
  EXPECT_EQ(Journal::Open(strange, "job").status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(fs::exists(strange + ".work/file"));
  const std::string nowhere = folder_ / "absent" / "out";
  const Status absent = Journal::Open(nowhere, "job").status();
  EXPECT_EQ(absent.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Message(absent),
            nowhere + ": cannot be written: " + nowhere + ".work: No such file or directory");
}

TEST_F(JournalTest, APartThatCannotBeSavedNamesTheOutputAndTheCause) {
  auto journal = Journal::Open(out_, "job");
  ASSERT_TRUE(journal.ok()) << journal.status();
  fs::remove_all(journal->folder());
  const Status status = journal->Save("a", Bytes("something"));
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(Message(status).starts_with(out_ + ": cannot be written: ")) << status;
  EXPECT_TRUE(Message(status).ends_with(": No such file or directory")) << status;
}

}  // namespace
}  // namespace terrace
