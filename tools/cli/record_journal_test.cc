#include "tools/cli/record_journal.h"

#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class RecordJournalTest : public testing::Test {
 protected:
  static constexpr size_t kRows = 3;

  RecordJournalTest() { std::filesystem::remove(path_); }

  StatusOr<RecordJournal> Open() { return RecordJournal::Open(path_, head_, kRows); }
  static JournaledTier Tier(const std::string& name) {
    return {.tier = {.name = name, .model_digest = "m of " + name, .text_digest = "t", .parameters = 7},
            .runtime = "cpu auto auto",
            .build = "b"};
  }
  static JournaledAnswer Answer(uint32_t tokens) {
    JournaledAnswer out{.ids = {1, 2, static_cast<int32_t>(tokens)}};
    out.answer = {.is_right = tokens % 2 == 0, .prompt_tokens = 9, .draft_agreement = 1.0 / 3};
    out.answer.signals = {.tokens = tokens, .mean_logprob = -1.0 / 7, .first_entropy = 0.25};
    return out;
  }
  void Write(const std::string& text) { std::ofstream(path_, std::ios::binary | std::ios::trunc) << text; }
  // Of two tiers, the first of which is whole.
  std::string TextOfTwo() {
    auto journal = Open();
    CHECK(journal.ok() && journal->Begin(Tier("nano")).ok());
    for (size_t row = 0; row < kRows; ++row)
      CHECK(journal->Add(row, Answer(static_cast<uint32_t>(row) + 1)).ok());
    CHECK(journal->Begin(Tier("base")).ok() && journal->Add(1, Answer(5)).ok());
    return *ReadFile(path_);
  }

  const std::string path_ = std::filesystem::path(testing::TempDir()) / "records.jsonl.journal";
  RecordJournalHead head_ = {.scored_rows_digest = "rows", .max_tokens = 128};
};

TEST_F(RecordJournalTest, GoesOnWithTheAnswersOfEachTier) {
  const std::string text = TextOfTwo();
  auto again = Open();
  ASSERT_TRUE(again.ok()) << again.status();
  const auto nano = again->Begin(Tier("nano"));
  ASSERT_TRUE(nano.ok()) << nano.status();
  EXPECT_EQ((*nano)->size(), kRows);
  const JournaledAnswer& answer = (*nano)->at(1);
  EXPECT_TRUE(answer.answer.is_right);
  EXPECT_EQ(answer.answer.prompt_tokens, 9u);
  EXPECT_EQ(answer.answer.draft_agreement, 1.0 / 3) << "the same bits";
  EXPECT_EQ(answer.answer.signals.mean_logprob, -1.0 / 7);
  EXPECT_EQ(answer.answer.signals.first_entropy, 0.25);
  EXPECT_THAT(answer.ids, ElementsAre(1, 2, 2));
  const auto base = again->Begin(Tier("base"));
  ASSERT_TRUE(base.ok()) << base.status();
  EXPECT_EQ((*base)->size(), 1u);
  EXPECT_EQ(*ReadFile(path_), text) << "nothing is written twice";
  ASSERT_TRUE(again->Add(0, Answer(4)).ok());
  again = Cancelled("it is over");
  auto third = Open();
  ASSERT_TRUE(third.ok() && third->Begin(Tier("nano")).ok());
  EXPECT_EQ((*third->Begin(Tier("base")))->size(), 2u);
}

TEST_F(RecordJournalTest, ALineThatWasBeingWrittenIsLeftOut) {
  const std::string whole = TextOfTwo();
  for (size_t bytes = 0; bytes <= whole.size(); ++bytes) {
    Write(whole.substr(0, bytes));
    auto journal = Open();
    ASSERT_TRUE(journal.ok()) << bytes << ": " << journal.status();
    const auto nano = journal->Begin(Tier("nano"));
    ASSERT_TRUE(nano.ok()) << bytes << ": " << nano.status();
    const std::string now = *ReadFile(path_);
    EXPECT_EQ(now.back(), '\n');
    EXPECT_TRUE(whole.starts_with(now)) << bytes;
  }
}

TEST_F(RecordJournalTest, AnswersOfAnythingElseAreNotMixedIn) {
  TextOfTwo();
  const RecordJournalHead ours = head_;
  head_.scored_rows_digest = "other";
  EXPECT_EQ(ExitCodeFor(Open().status()), kExitConfig);
  EXPECT_THAT(Message(Open().status()), HasSubstr("other rows"));
  head_ = ours;
  head_.max_tokens = 1;
  EXPECT_THAT(Message(Open().status()), HasSubstr("--max-tokens"));
  head_ = ours;
  JournaledTier model = Tier("nano"), runtime = Tier("nano"), build = Tier("nano");
  model.tier.model_digest = "another";
  runtime.runtime = "cpu f32 auto";
  build.build = "c";
  const std::pair<JournaledTier, const char*> cases[] = {{model, "another model"},
                                                         {Tier("base"), "another model"},
                                                         {runtime, "--compute"},
                                                         {build, "another build"}};
  for (const auto& [tier, says] : cases) {
    auto journal = Open();
    ASSERT_TRUE(journal.ok()) << journal.status();
    const Status status = journal->Begin(tier).status();
    EXPECT_EQ(ExitCodeFor(status), kExitConfig);
    EXPECT_THAT(Message(status), testing::AllOf(HasSubstr(path_), HasSubstr(says)));
  }
}

TEST_F(RecordJournalTest, NoTwoRunsWriteToOneFile) {
  auto first = Open();
  ASSERT_TRUE(first.ok()) << first.status();
  const Status second = Open().status();
  EXPECT_EQ(ExitCodeFor(second), kExitUnavailable);
  EXPECT_EQ(Message(second), path_ + ": another process is at work there");
  first = Cancelled("it is over");
  EXPECT_TRUE(Open().ok());
}

TEST_F(RecordJournalTest, AFileOfSomethingElseStaysAsItIs) {
  for (const std::string text : {"a thesis without a line end", "{\"form\""}) {
    Write(text);
    EXPECT_EQ(ExitCodeFor(Open().status()), kExitConfig);
    EXPECT_EQ(*ReadFile(path_), text);
  }
}

TEST_F(RecordJournalTest, WhatCannotBeReadIsNotOverwritten) {
  namespace fs = std::filesystem;
  const std::string text = TextOfTwo();
  fs::permissions(path_, fs::perms::owner_write);
  if (ReadFile(path_).ok()) GTEST_SKIP() << "root reads everything";
  EXPECT_EQ(ExitCodeFor(Open().status()), kExitUnavailable);
  fs::permissions(path_, fs::perms::owner_all);
  EXPECT_EQ(*ReadFile(path_), text);
}

TEST_F(RecordJournalTest, MalformedLinesAreNamed) {
  const std::string text = TextOfTwo();
  const std::string head = text.substr(0, text.find('\n') + 1);
  const std::string last = text.substr(text.rfind('\n', text.size() - 2) + 1);
  std::string row = text;
  row.replace(row.find("\"row\":0"), 7, "\"row\":3");
  std::string ids = text;
  ids.replace(ids.find("\"ids\":[1"), 8, "\"ids\":[-1");
  const std::pair<std::string, const char*> cases[] = {
      {"x\n", "line 1"},       {head + "{}\n", "line 2"}, {head + last, "before any tier"},
      {text + last, "twice"},  {text + "{}\n", "line 8"}, {row, "row 3 of 3"},
      {ids, "line 3: \"ids\""}};
  for (const auto& [bad, says] : cases) {
    Write(bad);
    EXPECT_EQ(ExitCodeFor(Open().status()), kExitData) << says;
    EXPECT_THAT(Message(Open().status()), HasSubstr(says));
  }
}

TEST_F(RecordJournalTest, ATierBeginsWhenTheOneBeforeIsWhole) {
  {
    auto journal = Open();
    ASSERT_TRUE(journal.ok() && journal->Begin(Tier("nano")).ok() && journal->Add(0, Answer(1)).ok());
    ASSERT_TRUE(journal->Begin(Tier("base")).ok());
  }
  EXPECT_EQ(ExitCodeFor(Open().status()), kExitData);
  EXPECT_THAT(Message(Open().status()), HasSubstr("1 answers of 3"));
}

}  // namespace
}  // namespace terrace
