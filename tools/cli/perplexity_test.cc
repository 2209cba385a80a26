#include "tools/cli/perplexity.h"

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/test_context.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr char kTask[] = "models/eval/classify.jsonl";

class PerplexityTest : public testing::Test {
 protected:
  PerplexityTest() {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }
  EvaluateOptions Options(const std::string& file) const {
    EvaluateOptions options;
    options.target.model = "models/terrace-demo-nano";
    options.target.threads = 2;
    options.limit = 5;
    options.perplexity = {file};
    return options;
  }
  static PerplexityReport Measured(const EvaluateOptions& options) {
    TestContext test;
    const auto report = MeasurePerplexity(options, test.context);
    CHECK(report.ok(), Message(report.status()));
    return *report;
  }
  const fs::path folder_ = fs::path(testing::TempDir()) / "perplexity";
};

TEST_F(PerplexityTest, AnswersAreCountedApartFromTheirChats) {
  const TextPerplexity told = Measured(Options(kTask)).files.at(0);
  EXPECT_EQ(told.texts, 5u);
  EXPECT_GE(told.answers.tokens, 10u);  // a token and the end of each
  EXPECT_LT(told.answers.tokens, told.all.tokens);
  EXPECT_LT(told.answers.nats, told.all.nats);
}

TEST_F(PerplexityTest, APlainFileIsOneTextAndARowOfTextTheSame) {
  const std::string text = "Once upon a time there was a little dog. It liked to play.";
  const TextPerplexity plain = Measured(Options(Write("plain.txt", text))).files.at(0);
  const TextPerplexity row =
      Measured(Options(Write("row.jsonl", Concat("{\"text\": \"", text, "\"}\n")))).files.at(0);
  EXPECT_EQ(plain.texts, 1u);
  EXPECT_EQ(plain.answers.tokens, 0u);
  EXPECT_EQ(plain.all.tokens, row.all.tokens);
  EXPECT_EQ(plain.all.nats, row.all.nats);
}

TEST_F(PerplexityTest, MoreTokensBeforeATokenSurpriseLess) {
  std::string text;
  for (int i = 0; i < 6; ++i) text += "The dog Rex and the cat Mia went to the park. ";
  EvaluateOptions options = Options(Write("long.txt", text));
  const PerplexityReport whole = Measured(options);
  EXPECT_EQ(whole.windows.window, 512u) << "of the model's context";
  EXPECT_EQ(whole.windows.stride, 256u);
  options.window = 8;
  options.stride = 4;
  const PerplexityReport pieces = Measured(options);
  EXPECT_EQ(pieces.files.at(0).all.tokens, whole.files.at(0).all.tokens);
  EXPECT_GT(pieces.files.at(0).all.nats, whole.files.at(0).all.nats);
}

TEST_F(PerplexityTest, IsShownForPeopleAndForPrograms) {
  EvaluateOptions options = Options(kTask);
  options.perplexity.push_back(Write("plain.txt", "Once upon a time there was a little dog."));
  TestContext people, programs;
  ASSERT_EQ(RunEvaluate(options, people.context), Status());
  EXPECT_THAT(people.out.str(), HasSubstr(kTask));
  EXPECT_THAT(people.out.str(), HasSubstr("windows of 512 tokens, each 256 behind the one before"));
  options.json = true;
  ASSERT_EQ(RunEvaluate(options, programs.context), Status());
  const auto json = ParseJson(programs.out.str());
  ASSERT_TRUE(json.ok()) << json.status();
  const Json &task = (*json)["files"][0], &plain = (*json)["files"][1];
  EXPECT_EQ(task["file"], kTask);
  EXPECT_EQ(task["texts"], 5);
  for (const Json& part : {task, task["answers"], plain})
    EXPECT_NEAR(part["perplexity"].get<double>(), std::exp(part["mean_nll"].get<double>()), 1e-9);
  EXPECT_FALSE(plain.contains("answers"));
}

TEST_F(PerplexityTest, WhatCannotBeMeasuredSaysWhy) {
  const std::string plain = Write("plain.txt", "Once upon a time");
  const struct {
    const char* name;
    StatusCode code;
    std::string mention;
    std::function<void(EvaluateOptions&)> change;
  } cases[] = {
      {"a served model", StatusCode::kInvalidArgument, "in this process",
       [](EvaluateOptions& o) { o.target.router = "h:1"; }},
      {"a device", StatusCode::kInvalidArgument, "--device cuda",
       [](EvaluateOptions& o) { o.target.device = "cuda"; }},
      {"fp8", StatusCode::kInvalidArgument, "fp8", [](EvaluateOptions& o) { o.target.compute = "fp8"; }},
      {"a drafter", StatusCode::kInvalidArgument, "--drafter",
       [](EvaluateOptions& o) { o.target.drafter = "ngram"; }},
      {"a window past the context", StatusCode::kInvalidArgument, "context of 512",
       [](EvaluateOptions& o) { o.window = 513; }},
      {"a stride of a window", StatusCode::kInvalidArgument, "below the window of 16",
       [](EvaluateOptions& o) { o.window = o.stride = 16; }},
      {"an absent file", StatusCode::kNotFound, "absent",
       [](EvaluateOptions& o) { o.perplexity = {"absent"}; }},
      {"an empty file", StatusCode::kDataLoss, "no text",
       [&](EvaluateOptions& o) { o.perplexity = {Write("empty.txt", "")}; }},
      {"no UTF-8", StatusCode::kDataLoss, "latin.txt: is not UTF-8 at byte 3",
       [&](EvaluateOptions& o) { o.perplexity = {Write("latin.txt", "caf\xE9 au lait")}; }},
      {"a row that is none", StatusCode::kDataLoss, "rows.jsonl:2",
       [&](EvaluateOptions& o) { o.perplexity = {Write("rows.jsonl", "{\"text\": \"a b\"}\n{}\n")}; }},
      {"nothing behind a token", StatusCode::kDataLoss, "no token behind",
       [&](EvaluateOptions& o) { o.perplexity = {Write("none.jsonl", "{\"text\": \"\"}\n")}; }},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    EvaluateOptions options = Options(plain);
    c.change(options);
    TestContext test;
    const Status status = MeasurePerplexity(options, test.context).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(Message(status), HasSubstr(c.mention));
  }
}

TEST_F(PerplexityTest, CtrlCEndsIt) {
  TestContext test;  // blocks the signal: it waits until the command looks
  ASSERT_EQ(::raise(SIGINT), 0);
  EXPECT_EQ(MeasurePerplexity(Options(kTask), test.context).status().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace terrace
