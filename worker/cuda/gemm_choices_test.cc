#include "worker/cuda/gemm_choices.h"

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const GemmMachine kMachine = {.device = "Fake 9000, 9.0, 132", .driver = 13000, .library = 130100};
const GemmShape kShape = {.tokens = 2048, .rows = 6144, .columns = 4096};

GemmAlgorithm Algorithm(uint64_t seed) {
  GemmAlgorithm out;
  for (uint64_t& word : out) word = seed = seed * 6364136223846793005u + 1442695040888963407u;
  return out;
}

class GemmChoicesTest : public testing::Test {
 protected:
  GemmChoicesTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  GemmChoices Open(const GemmMachine& machine = kMachine) const { return GemmChoices(folder_, machine); }
  static void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

  const std::string folder_ = testing::TempDir() + "gemm_choices";
};

TEST_F(GemmChoicesTest, WhatIsKeptIsFoundByTheNextProcess) {
  GemmChoices first = Open();
  ASSERT_TRUE(first.Read().ok());
  std::vector<GemmShape> shapes = {kShape};
  for (int i = 0; i < 6; ++i) shapes.push_back(kShape);  // which differ in one member each
  shapes[1].tokens = 1;
  shapes[2].rows = 1;
  shapes[3].columns = 0xffffffff;
  shapes[4].is_e4m3 = true;
  shapes[5].out_is_f32 = true;
  shapes[6].adds_to_out = true;
  for (size_t i = 0; i < shapes.size(); ++i) {
    EXPECT_EQ(first.Find(shapes[i]), nullptr);
    ASSERT_TRUE(first.Keep(shapes[i], Algorithm(i)).ok());
  }
  ASSERT_TRUE(first.Keep(shapes[0], Algorithm(100)).ok());  // it was chosen anew
  GemmChoices next = Open();
  ASSERT_TRUE(next.Read().ok());
  for (size_t i = 0; i < shapes.size(); ++i) {
    ASSERT_NE(next.Find(shapes[i]), nullptr) << i;
    EXPECT_EQ(*next.Find(shapes[i]), Algorithm(i == 0 ? 100 : i));
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1)
      << "nothing temporary is left";
}

TEST_F(GemmChoicesTest, ProcessesThatShareAFolderKeepEachOthersChoices) {
  GemmChoices one = Open(), other = Open();
  GemmShape shape = kShape;
  shape.tokens = 8;
  ASSERT_TRUE(one.Keep(kShape, Algorithm(1)).ok());
  ASSERT_TRUE(other.Keep(shape, Algorithm(2)).ok());
  ASSERT_TRUE(other.Keep(kShape, Algorithm(3)).ok());  // each has its own
  EXPECT_EQ(*one.Find(kShape), Algorithm(1));
  GemmChoices next = Open();
  ASSERT_TRUE(next.Read().ok());
  EXPECT_EQ(*next.Find(kShape), Algorithm(3));
  EXPECT_EQ(*next.Find(shape), Algorithm(2));
}

TEST_F(GemmChoicesTest, AnotherDeviceHasAnotherFileAndAnotherVersionNone) {
  ASSERT_TRUE(Open().Keep(kShape, Algorithm(1)).ok());
  GemmMachine device = kMachine, driver = kMachine, library = kMachine;
  device.device += ", of half the memory";
  ++driver.driver;
  ++library.library;
  GemmChoices of_device = Open(device);
  EXPECT_TRUE(of_device.Read().ok());
  EXPECT_EQ(of_device.Find(kShape), nullptr);
  for (const GemmMachine& machine : {driver, library}) {
    GemmChoices stale = Open(machine);
    const Status read = stale.Read();
    EXPECT_EQ(Reason(read), "stale");
    EXPECT_THAT(Message(read), HasSubstr(stale.path()));
    EXPECT_EQ(stale.Find(kShape), nullptr);
  }
  ASSERT_TRUE(Open(library).Keep(kShape, Algorithm(2)).ok());  // replaces it
  GemmChoices next = Open(library);
  ASSERT_TRUE(next.Read().ok());
  EXPECT_EQ(*next.Find(kShape), Algorithm(2));
}

TEST_F(GemmChoicesTest, WhatIsNotAsItWasWrittenIsIgnoredAndReplaced) {
  ASSERT_TRUE(Open().Keep(kShape, Algorithm(1)).ok());
  const std::string path = Open().path(), good = ReadFile(path).value();
  const auto with = [&](const std::function<void(Json&)>& change) {
    Json json = *ParseJson(good);
    change(json);
    return ToJsonText(json);
  };
  const std::pair<const char*, std::string> cases[] = {
      {"empty", ""},
      {"cut", good.substr(0, good.size() / 2)},
      {"a list", "[]"},
      {"format", with([](Json& json) { json["format"] = "terrace-cublaslt-2"; })},
      {"another device", with([](Json& json) { json["device"] = "Fake 8000"; })},
      {"a choice", with([](Json& json) { json["choices"][0]["rows"] = 7; })},
      {"no digest", with([](Json& json) { json.erase("digest"); })},
      {"more", with([](Json& json) { json["more"] = 1; })}};
  for (const auto& [name, text] : cases) {
    SCOPED_TRACE(name);
    Write(path, text);
    GemmChoices choices = Open();
    const Status read = choices.Read();
    EXPECT_EQ(read.code(), StatusCode::kDataLoss) << Message(read);
    EXPECT_THAT(Message(read), HasSubstr(path));
    EXPECT_EQ(choices.Find(kShape), nullptr);
    ASSERT_TRUE(choices.Keep(kShape, Algorithm(2)).ok());
    GemmChoices next = Open();
    EXPECT_TRUE(next.Read().ok());
    EXPECT_EQ(*next.Find(kShape), Algorithm(2));
  }
}

TEST_F(GemmChoicesTest, WithoutItsFolderOrWithNoneNothingIsKeptButKnown) {
  GemmChoices absent(folder_ + "/absent", kMachine);
  EXPECT_EQ(absent.Read().code(), StatusCode::kNotFound);
  EXPECT_FALSE(absent.Keep(kShape, Algorithm(1)).ok());
  EXPECT_EQ(*absent.Find(kShape), Algorithm(1));
  GemmChoices nowhere("", kMachine);
  EXPECT_TRUE(nowhere.Read().ok());
  EXPECT_TRUE(nowhere.Keep(kShape, Algorithm(1)).ok());
  EXPECT_EQ(*nowhere.Find(kShape), Algorithm(1));
  EXPECT_TRUE(fs::is_empty(folder_));
}

}  // namespace
}  // namespace terrace
