#include "tools/cli/synthesize.h"

#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/test_context.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class SynthesizeCommand : public testing::Test {
 protected:
  SynthesizeCommand() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  SynthesizeOptions Small(const std::string& name) const {
    SynthesizeOptions options;
    options.out = folder_ / name;
    options.shape = "135m";
    options.changes = {.layers = 1, .hidden = 64, .heads = 2, .kv_heads = 1, .ffn = 64, .vocab = 1500};
    return options;
  }
  bool IsEmpty() const { return fs::is_empty(folder_); }
  const fs::path folder_ = fs::path(testing::TempDir()) / "synthesize_command";
};

TEST_F(SynthesizeCommand, ThePathTellsTheFormatUnlessItIsGiven) {
  struct {
    std::string name, format, want;
  } const cases[] = {{"a.gguf", "", "gguf"},
                     {"b", "", "safetensors"},
                     {"c", "gguf", "gguf"},
                     {"d.gguf", "safetensors", "safetensors"}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    SynthesizeOptions options = Small(c.name);
    options.format = c.format;
    TestContext test;
    ASSERT_EQ(RunSynthesize(options, test.context), Status());
    const auto model = OpenModel(options.out);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->format, c.want);
    EXPECT_THAT(test.out.str(), HasSubstr(options.out + ": 1"));
    EXPECT_THAT(test.out.str(), HasSubstr(" parameters, "));
    EXPECT_THAT(test.out.str(), HasSubstr("digest " + model->digest.Hex()));
  }
}

TEST_F(SynthesizeCommand, TakesShapeAndTokenizerOfAnotherModel) {
  const auto demo = OpenModel("models/terrace-demo-nano").value();
  for (const std::string source : {"models/terrace-demo-nano", "models/terrace-demo-nano.f16.gguf"}) {
    SynthesizeOptions options = Small("copy");
    options.shape.clear();
    options.config = "models/terrace-demo-nano/config.json";
    options.changes = {};
    options.tokenizer = source;
    TestContext test;
    ASSERT_EQ(RunSynthesize(options, test.context), Status());
    const auto model = OpenModel(options.out);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(ConfigJsonText(model->config), ConfigJsonText(demo.config));
    EXPECT_EQ(Digest(*model->text), Digest(*demo.text));
    fs::remove_all(options.out);
  }
}

TEST_F(SynthesizeCommand, WhatMakesNoSenseIsAUsageErrorAndLeavesNothing) {
  struct {
    void (*change)(SynthesizeOptions&);
    const char* mention;
  } const cases[] = {
      {[](SynthesizeOptions& o) { o.changes.heads = 7; }, "7 does not divide the width 64"},
      {[](SynthesizeOptions& o) { o.changes = {.kv_heads = 4}; }, "--kv-heads: 4"},
      {[](SynthesizeOptions& o) { o.changes.head_dim = 33; }, "--head-dim: 33"},
      {[](SynthesizeOptions& o) { o.changes.vocab = 261; }, "262 tokens, the vocabulary 261"},
      {[](SynthesizeOptions& o) { o.tokenizer = "models/terrace-demo-nano", o.changes.vocab = 300; },
       "1024 tokens, the vocabulary 300"},
      {[](SynthesizeOptions& o) { o.dtype = DType::kQ8_0, o.format = "safetensors"; }, "Q8_0"},
      {[](SynthesizeOptions& o) { o.dtype = DType::kQ8_0, o.changes.ffn = 100; }, "100"}};
  for (const auto& c : cases) {
    SynthesizeOptions options = Small("m.gguf");
    c.change(options);
    TestContext test;
    const Status status = RunSynthesize(options, test.context);
    EXPECT_EQ(ExitCodeFor(status), kExitUsage) << status;
    EXPECT_THAT(Message(status), HasSubstr(c.mention));
    EXPECT_TRUE(IsEmpty()) << c.mention;
  }
}

TEST_F(SynthesizeCommand, NothingIsOverwritten) {
  const SynthesizeOptions options = Small("m.gguf");
  std::ofstream(options.out) << "mine";
  TestContext test;
  EXPECT_EQ(ExitCodeFor(RunSynthesize(options, test.context)), kExitUsage);
  EXPECT_EQ(fs::file_size(options.out), 4u);
}

TEST_F(SynthesizeCommand, CtrlCRemovesWhatWasWritten) {
  TestContext test;  // blocks the signal: it waits until the command looks
  ASSERT_EQ(::raise(SIGINT), 0);
  const Status status = RunSynthesize(Small("m.gguf"), test.context);
  EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
  EXPECT_TRUE(IsEmpty());
}

}  // namespace
}  // namespace terrace
