#include "worker/formats/staged_path.h"

#include <filesystem>
#include <fstream>

#include "base/mapped_file.h"
#include "gtest/gtest.h"
#include "worker/formats/testing_limits.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

class StagedPathTest : public testing::Test {
 protected:
  StagedPathTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  // How many files and folders there are.
  size_t Entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "staged";
  const std::string path_ = folder_ / "out";
};

TEST_F(StagedPathTest, AppearsAtItsNameByCommit) {
  auto staged = StagedPath::Create(path_ + "/");
  ASSERT_TRUE(staged.ok()) << staged.status();
  auto file = OutputFile::Create(staged->temporary(), 5);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->Append(Bytes("ab")), Status());
  ASSERT_EQ(file->Append(Bytes("cde")), Status());
  EXPECT_EQ(file->size(), 5u);
  ASSERT_EQ(file->Close(), Status());
  EXPECT_FALSE(fs::exists(path_));
  ASSERT_EQ(staged->Commit(), Status());
  EXPECT_EQ(ReadFile(path_).value(), "abcde");
  EXPECT_EQ(Entries(), 1u);
}

TEST_F(StagedPathTest, LeavesNothingWithoutCommit) {
  {
    auto staged = StagedPath::Create(path_);
    ASSERT_TRUE(staged.ok()) << staged.status();
    fs::create_directory(staged->temporary());
    std::ofstream(staged->temporary() + "/file") << "text";
    const StagedPath moved = *std::move(staged);
    EXPECT_EQ(Entries(), 1u);
  }
  EXPECT_EQ(Entries(), 0u);
}

TEST_F(StagedPathTest, NeverReplacesWhatIsThere) {
  auto late = StagedPath::Create(path_);
  ASSERT_TRUE(late.ok()) << late.status();
  std::ofstream(late->temporary()) << "new";
  std::ofstream(path_) << "old";  // between Create and Commit
  const Status status = late->Commit();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(StagedPath::Create(path_).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadFile(path_).value(), "old");
  EXPECT_EQ(StagedPath::Create("").status().code(), StatusCode::kInvalidArgument);
}

TEST_F(StagedPathTest, AReplacedFileHasAllPartsAndNothingIsLeftBesideIt) {
  const std::string temporary = path_ + ".new";
  std::ofstream(temporary) << "of a process that was killed";
  for (const std::string text : {"first", "second"}) {
    EXPECT_EQ(ReplaceFile(path_, temporary, {Bytes(text), Bytes("|"), Bytes("")}), Status());
    EXPECT_EQ(ReadFile(path_).value(), text + "|");
    EXPECT_EQ(Entries(), 1u);
  }
  {
    const FileSizeLimit limit(4096);
    const std::string large(8192, 'x');
    EXPECT_EQ(ReplaceFile(path_, temporary, {Bytes(large)}).code(), StatusCode::kResourceExhausted);
  }
  const fs::path other = folder_ / "folder";
  fs::create_directory(other);
  EXPECT_EQ(ReplaceFile(other, temporary, {Bytes("x")}).code(), StatusCode::kUnavailable);
  fs::remove(other);
  EXPECT_EQ(ReplaceFile(path_, folder_ / "absent" / "new", {Bytes("x")}).code(), StatusCode::kNotFound);
  EXPECT_EQ(ReadFile(path_).value(), "second|");
  EXPECT_EQ(Entries(), 1u);
}

TEST_F(StagedPathTest, AnAbsentFolderIsNotFound) {
  const std::string path = folder_ / "absent" / "out";
  const Status status = OutputFile::Create(path, 1).status();
  EXPECT_EQ(status.code(), StatusCode::kNotFound) << status;
  EXPECT_NE(Message(status).find(path), std::string::npos) << status;
}

TEST_F(StagedPathTest, NoRoomIsToldBeforeAndWhileWriting) {
  const FileSizeLimit limit(4096);
  const Status before = OutputFile::Create(path_, 8192).status();
  EXPECT_EQ(before.code(), StatusCode::kResourceExhausted) << before;
  fs::remove(path_);
  auto file = OutputFile::Create(path_, 0);
  ASSERT_TRUE(file.ok()) << file.status();
  const Status during = file->Append(Bytes(std::string(8192, 'x')));
  EXPECT_EQ(during.code(), StatusCode::kResourceExhausted) << during;
  EXPECT_NE(Message(during).find("at byte 4096"), std::string::npos) << during;
}

}  // namespace
}  // namespace terrace
