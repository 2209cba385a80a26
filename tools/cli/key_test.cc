#include "tools/cli/key.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "base/crypto.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/test_context.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

std::string Write(const std::string& text) {
  const std::string file = ::testing::TempDir() + "/api-key";
  std::ofstream(file) << text;
  return file;
}

TEST(Key, ANewKeyComesWithItsDigest) {
  TestContext test;
  ASSERT_TRUE(RunKey({}, test.context).ok());
  const std::string out = test.out.str();
  const size_t key = out.find("terrace-");
  ASSERT_NE(key, std::string::npos);
  const std::string text = out.substr(key, out.find('\n') - key);
  EXPECT_THAT(out, HasSubstr("key_sha256  " + ToHex(AsBytes(Sha256(text))) + "\n"));
  TestContext again;
  ASSERT_TRUE(RunKey({}, again.context).ok());
  EXPECT_NE(again.out.str(), out);
}

TEST(Key, AKeyInAFileIsDescribedAndNotShown) {
  TestContext test;
  ASSERT_TRUE(RunKey({.file = Write("terrace-abc\r\nmore\n")}, test.context).ok());
  EXPECT_EQ(test.out.str(), "key_sha256  " + ToHex(AsBytes(Sha256("terrace-abc"))) + "\n");
}

TEST(Key, ANewKeyMayGoToAFileThatNobodyElseReads) {
  const std::string file = ::testing::TempDir() + "/new-key";
  unlink(file.c_str());
  TestContext test;
  ASSERT_TRUE(RunKey({.out = file}, test.context).ok());
  const auto key = ReadApiKey(file);
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_EQ(test.out.str(), "key_sha256  " + ToHex(AsBytes(Sha256(*key))) + "\n");
  struct stat info = {};
  ASSERT_EQ(stat(file.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(RunKey({.out = file}, test.context).code(), StatusCode::kUnavailable) << "it is there";
}

TEST(Key, WhatIsNoKeyIsRefused) {
  EXPECT_EQ(ReadApiKey(::testing::TempDir() + "/absent").status().code(), StatusCode::kNotFound);
  for (const char* text : {"", "\n", "two words\n", "\xc3\xa4\n"}) {
    EXPECT_EQ(ReadApiKey(Write(text)).status().code(), StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace terrace
