#include <filesystem>
#include <ostream>
#include <set>

#include "base/exit_code.h"
#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/formats/malformed_models.h"
#include "worker/formats/model_files.h"
#include "worker/formats/testing_files.h"

namespace terrace {

// How a failing test names its model.
void PrintTo(const MalformedModel& model, std::ostream* out) { *out << model.name; }

namespace {

std::string Path(const std::string& name) { return testing::TempDir() + "malformed_" + name; }

class EveryMalformedModel : public testing::TestWithParam<MalformedModel> {};

// Whether the cause lies at a byte that is there to be named: anywhere in a GGUF file, or at a tensor of a
// safetensors file.
bool HasAPlace(const std::string& reason, const std::string& message) {
  if (reason == "missing_key" || reason == "missing_tensor") return false;
  return message.find(".gguf: ") != std::string::npos ||
         message.find(".safetensors: tensor \"") != std::string::npos;
}

TEST_P(EveryMalformedModel, IsRefusedWithItsReasonAndPlace) {
  const MalformedModel& malformed = GetParam();
  const std::string path = Path(malformed.name);
  malformed.write(path);
  const Status status = OpenModel(path).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
  EXPECT_EQ(ExitCodeFor(status), kExitData);
  EXPECT_EQ(Reason(status), malformed.reason) << status;
  EXPECT_TRUE(Message(status).starts_with(path)) << status;
  for (const std::string& mention : malformed.mentions)
    EXPECT_NE(Message(status).find(mention), std::string::npos) << "no " << mention << " in " << status;
  if (HasAPlace(malformed.reason, Message(status))) {
    EXPECT_THAT(Message(status), ::testing::ContainsRegex("byte [0-9]"));
  }
  EXPECT_LT(Message(status).size(), path.size() + 500);
  std::filesystem::remove_all(path);
}

std::string NameOf(const testing::TestParamInfo<MalformedModel>& info) {
  return info.param.name.substr(0, info.param.name.find('.'));
}
INSTANTIATE_TEST_SUITE_P(Ggufs, EveryMalformedModel, testing::ValuesIn(MalformedGgufs()), NameOf);
INSTANTIATE_TEST_SUITE_P(Folders, EveryMalformedModel, testing::ValuesIn(MalformedFolders()), NameOf);

TEST(MalformedModels, DifferFromModelsThatOpen) {
  const std::string file = Path("valid.gguf"), folder = Path("valid");
  WriteFile(file, TinyGguf().Bytes());
  TinyFolder().Write(folder);
  EXPECT_TRUE(OpenModel(file).ok()) << OpenModel(file).status();
  EXPECT_TRUE(OpenModel(folder).ok()) << OpenModel(folder).status();
}

TEST(MalformedModels, HaveDifferentNames) {
  std::set<std::string> names;
  for (const auto& models : {MalformedGgufs(), MalformedFolders()}) {
    for (const auto& model : models) EXPECT_TRUE(names.insert(model.name).second) << model.name;
  }
  EXPECT_GE(names.size(), 40u);
}

// Changes bytes of one file of a valid folder; whatever comes out, nothing but DATA_LOSS may be answered.
TEST(OpenModel, SurvivesRandomChangesOfEveryFileOfAFolder) {
  const std::string folder = Path("random");
  const FolderParts parts = TinyFolder();
  for (const char* name :
       {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}) {
    parts.Write(folder);
    const std::string valid = ReadFile(folder + "/" + name).value();
    for (uint64_t seed = 0; seed < 300; ++seed) {
      SCOPED_TRACE(Concat(name, ", seed ", seed));
      std::string changed = valid;
      changed[RandomBits(seed, 0) % changed.size()] = static_cast<char>(RandomBits(seed, 1));
      if (seed % 3 == 0) changed.resize(RandomBits(seed, 2) % changed.size());
      WriteFile(folder + "/" + name, changed);
      const Status status = OpenModel(folder).status();
      if (status.ok()) continue;
      EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
      EXPECT_NE(Reason(status), "") << status;
      EXPECT_NE(Message(status).find(folder), std::string::npos) << status;
    }
  }
}

}  // namespace
}  // namespace terrace
