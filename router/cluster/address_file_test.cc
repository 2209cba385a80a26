#include "router/cluster/address_file.h"

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class AddressFileTest : public ::testing::Test {
 protected:
  // Puts a new file in the old one's place.
  void Write(const std::string& text) {
    const std::string next = path_ + ".next";
    std::ofstream(next) << text;
    std::filesystem::rename(next, path_);
  }
  void ExpectKept(const char* why) {
    const Status error = file_.Refresh();
    EXPECT_THAT(Message(error), HasSubstr(path_));
    EXPECT_THAT(Message(error), HasSubstr(why));
    EXPECT_EQ(file_.Refresh(), error) << "while it is as it is";
    EXPECT_THAT(file_.addresses(), ElementsAre("a:1"));
  }

  const std::string path_ =
      ::testing::TempDir() + ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".workers";
  AddressFile file_{path_};
};

TEST_F(AddressFileTest, EveryLineIsAWorkerButForComments) {
  Write("# the workers\n\n10.0.0.1:8101\n  b:2 # the second\r\n[::1]:3");
  ASSERT_TRUE(file_.Refresh().ok()) << file_.Refresh();
  EXPECT_THAT(file_.addresses(), ElementsAre("10.0.0.1:8101", "b:2", "[::1]:3"));
}

TEST_F(AddressFileTest, AChangeIsSeen) {
  Write("a:1\n");
  EXPECT_TRUE(file_.Refresh().ok());
  Write("b:1\n");  // as long as the first, and perhaps within one tick of the file system's clock
  EXPECT_TRUE(file_.Refresh().ok());
  EXPECT_THAT(file_.addresses(), ElementsAre("b:1"));
  std::ofstream(path_, std::ios::app) << "c:1\n";
  EXPECT_TRUE(file_.Refresh().ok());
  EXPECT_THAT(file_.addresses(), ElementsAre("b:1", "c:1"));
}

TEST_F(AddressFileTest, AFileThatCannotBeUsedKeepsTheLastWorkers) {
  Write("a:1\n");
  EXPECT_TRUE(file_.Refresh().ok());
  std::filesystem::remove(path_);
  ExpectKept("cannot be opened");
  std::filesystem::create_directory(path_);
  ExpectKept("is not a file");
  std::filesystem::remove(path_);
  Write("b:1\n\nnonsense\n");
  ExpectKept("line 3");
  Write("b:0\n");
  ExpectKept("line 1");
  Write("");
  ExpectKept("lists no worker");
  Write("# all gone\n");
  ExpectKept("lists no worker");
  Write(std::string(2 << 20, '#'));
  ExpectKept("bytes, limit");
  Write("b:1\n");
  EXPECT_TRUE(file_.Refresh().ok());
  EXPECT_THAT(file_.addresses(), ElementsAre("b:1"));
}

TEST_F(AddressFileTest, AFileThatComesLaterIsSeen) {
  EXPECT_FALSE(file_.Refresh().ok());
  EXPECT_THAT(file_.addresses(), IsEmpty());
  Write("a:1\n");
  EXPECT_TRUE(file_.Refresh().ok());
  EXPECT_THAT(file_.addresses(), ElementsAre("a:1"));
}

}  // namespace
}  // namespace terrace
