#include "base/mapped_file.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::EndsWith;

class MappedFileTest : public testing::Test {
 protected:
  MappedFileTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
    std::ofstream(file_) << "text";
  }
  // Of both ways to read.
  static void ExpectError(const std::string& path, StatusCode code, const char* end) {
    for (const Status& status : {ReadFile(path).status(), MappedFile::Open(path).status()}) {
      EXPECT_EQ(status.code(), code) << status;
      EXPECT_THAT(Message(status), EndsWith(end));
    }
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "mapped_file";
  const std::string file_ = folder_ / "file";
};

TEST_F(MappedFileTest, GivesTheBytes) {
  EXPECT_EQ(*ReadFile(file_), "text");
  EXPECT_EQ((*MappedFile::Open(file_))->bytes().size(), 4u);
  EXPECT_EQ(ReadFile(file_, 3).status().code(), StatusCode::kResourceExhausted);
}

TEST_F(MappedFileTest, AFileThatIsNotThereIsNotFound) {
  ExpectError(folder_ / "absent", StatusCode::kNotFound, ": No such file or directory");
  ExpectError(file_ + "/below", StatusCode::kNotFound, ": Not a directory");
  ExpectError(folder_, StatusCode::kNotFound, ": not a regular file");
}

TEST_F(MappedFileTest, AFileThatCannotBeReadIsNotTakenForAnAbsentOne) {
  const std::string circle = folder_ / "circle";
  fs::create_symlink(circle, circle);
  ExpectError(circle, StatusCode::kUnavailable, ": Too many levels of symbolic links");
  EXPECT_EQ(ReadFile("/proc/self/mem").status().code(), StatusCode::kUnavailable) << "EIO at its first byte";

  const int next = dup(STDERR_FILENO);
  ASSERT_GE(next, 0);
  close(next);
  rlimit usual = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &usual), 0);
  const rlimit none = {.rlim_cur = static_cast<rlim_t>(next), .rlim_max = usual.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  ExpectError(file_, StatusCode::kUnavailable, ": Too many open files");
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &usual), 0);
}

}  // namespace
}  // namespace terrace
