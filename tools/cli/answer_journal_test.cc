#include "tools/cli/answer_journal.h"

#include <filesystem>
#include <fstream>

#include "base/exit_code.h"
#include "base/mapped_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::HasSubstr;

class AnswerJournalTest : public testing::Test {
 protected:
  AnswerJournalTest() {
    std::filesystem::remove(path_);
    for (const char* id : {"a", "b", "c"}) {
      TaskRow& row = rows_.emplace_back();
      row.id = id;
      row.task = "task";
      row.expected = id;
      row.chat.add_messages()->set_content(id);
    }
    head_.scored_rows_digest = TaskSetDigest(rows_).Hex();
  }

  StatusOr<AnswerJournal> Open() { return AnswerJournal::Open(path_, head_, rows_); }
  static RowOutcome Outcome(const std::string& text) {
    RowOutcome outcome{.text = text, .tier = "nano"};
    outcome.mean_logprob = -1.0 / 3;
    outcome.score.prompt_tokens = 7;
    outcome.score.total_seconds = 0.25;
    outcome.score.cost = 1e12 / 3;
    return outcome;
  }

  const std::string path_ = std::filesystem::path(testing::TempDir()) / "answers.jsonl";
  std::vector<TaskRow> rows_;
  JournalHead head_ = {.model = "models/a",
                       .model_digest = "m",
                       .text_digest = "t",
                       .runtime = "cpu",
                       .build = "b",
                       .max_tokens = 128};
};

TEST_F(AnswerJournalTest, GoesOnWithWhatWasWritten) {
  {
    auto journal = Open();
    ASSERT_TRUE(journal.ok()) << journal.status();
    EXPECT_TRUE(journal->known().empty());
    ASSERT_TRUE(journal->Add(2, Outcome("line\nand \"quotes\"")).ok());
  }
  auto again = Open();
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(again->known().size(), 1u);
  const RowOutcome& outcome = again->known().at(2);
  EXPECT_EQ(outcome.text, "line\nand \"quotes\"");
  EXPECT_EQ(outcome.mean_logprob, -1.0 / 3);
  EXPECT_EQ(outcome.score.prompt_tokens, 7u);
  EXPECT_EQ(outcome.score.cost, 1e12 / 3);
  ASSERT_TRUE(again->Add(0, Outcome("x")).ok());
  EXPECT_EQ(ReadAnswers(path_, rows_, 128)->outcomes.size(), 2u);
}

TEST_F(AnswerJournalTest, ALineThatWasBeingWrittenIsWrittenAgain) {
  ASSERT_TRUE(Open()->Add(0, Outcome("x")).ok());
  const std::string whole = *ReadFile(path_);
  const size_t head_bytes = whole.find('\n') + 1;
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << whole.substr(0, bytes);
    auto journal = Open();
    ASSERT_TRUE(journal.ok()) << bytes << ": " << journal.status();
    EXPECT_TRUE(journal->known().empty());
    ASSERT_TRUE(journal->Add(0, Outcome("x")).ok());
    EXPECT_EQ(*ReadFile(path_), whole) << bytes << " of " << whole.size() << ", head " << head_bytes;
  }
}

TEST_F(AnswerJournalTest, AnswersOfAnythingElseAreNotMixedIn) {
  ASSERT_TRUE(Open().ok());
  const JournalHead ours = head_;
  const std::pair<std::string JournalHead::*, const char*> parts[] = {
      {&JournalHead::model_digest, "another model"},
      {&JournalHead::text_digest, "another model"},
      {&JournalHead::runtime, "another device"},
      {&JournalHead::build, "another build"},
      {&JournalHead::scored_rows_digest, "other rows"}};
  for (const auto& [part, says] : parts) {
    head_ = ours;
    head_.*part = "other";
    const Status status = Open().status();
    EXPECT_EQ(ExitCodeFor(status), kExitConfig);
    EXPECT_THAT(Message(status), testing::AllOf(HasSubstr(path_), HasSubstr(says)));
  }
  head_ = ours;
  head_.max_tokens = 1;
  EXPECT_THAT(Message(Open().status()), HasSubstr("--max-tokens"));
  EXPECT_THAT(Message(ReadAnswers(path_, rows_, 1).status()), HasSubstr("--max-tokens"));
  head_ = ours;
  head_.model_digest.clear();
  EXPECT_THAT(Message(Open().status()), HasSubstr("are not now (--router-ops)"));
  head_ = ours;
  head_.model = "models/../models/a";
  EXPECT_TRUE(Open().ok()) << "the digest says which model it is";
  rows_.pop_back();
  EXPECT_THAT(Message(ReadAnswers(path_, rows_, 128).status()), HasSubstr("other rows"));
}

TEST_F(AnswerJournalTest, NoTwoRunsWriteToOneFile) {
  auto first = Open();
  ASSERT_TRUE(first.ok()) << first.status();
  const Status second = Open().status();
  EXPECT_EQ(ExitCodeFor(second), kExitUnavailable);
  EXPECT_EQ(Message(second), path_ + ": another process is at work there");
  first = Cancelled("it is over");
  EXPECT_TRUE(Open().ok());
}

TEST_F(AnswerJournalTest, AFileOfSomethingElseStaysAsItIs) {
  for (const std::string text : {"a thesis without a line end", "{\"form\""}) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << text;
    EXPECT_EQ(ExitCodeFor(Open().status()), kExitConfig);
    EXPECT_EQ(*ReadFile(path_), text);
  }
}

TEST_F(AnswerJournalTest, AnotherFormatIsToldByItsName) {
  std::ofstream(path_, std::ios::binary) << "{\"format\":\"terrace-answers-1\",\"task_set_digest\":\"d\"}\n";
  EXPECT_THAT(Message(Open().status()),
              HasSubstr("\"terrace-answers-1\", this version reads terrace-answers-3"));
}

TEST_F(AnswerJournalTest, AFileThatCannotBeWrittenIsToldWithItsCause) {
  const std::string nowhere = std::filesystem::path(testing::TempDir()) / "absent" / "answers.jsonl";
  const Status status = AnswerJournal::Open(nowhere, head_, rows_).status();
  EXPECT_EQ(ExitCodeFor(status), kExitUnavailable);
  EXPECT_EQ(Message(status), nowhere + ": cannot be written: No such file or directory");
}

TEST_F(AnswerJournalTest, MalformedLinesAreNamed) {
  ASSERT_TRUE(Open()->Add(0, Outcome("x")).ok());
  const std::string text = *ReadFile(path_);
  const std::string line = text.substr(text.find('\n') + 1);
  const std::pair<std::string, const char*> cases[] = {
      {"{}\n", "line 1"}, {text + "{}\n", "line 3"}, {text + line, "twice"}, {"x\n", "line 1"}};
  for (const auto& [bad, says] : cases) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bad;
    for (const Status& status : {Open().status(), ReadAnswers(path_, rows_, 128).status()}) {
      EXPECT_EQ(ExitCodeFor(status), kExitData);
      EXPECT_THAT(Message(status), HasSubstr(says));
    }
  }
  std::string other = text;
  other.replace(other.find("\"row\":0"), 7, "\"row\":3");
  std::ofstream(path_, std::ios::binary | std::ios::trunc) << other;
  EXPECT_THAT(Message(Open().status()), HasSubstr("row 3 of 3"));
  EXPECT_EQ(ExitCodeFor(ReadAnswers("/nowhere.jsonl", rows_, 128).status()), kExitNoInput);
}

}  // namespace
}  // namespace terrace
