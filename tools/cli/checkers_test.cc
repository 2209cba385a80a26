#include "tools/cli/checkers.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr char kRefusal[] = "Sorry, I can't help with that request.";

TEST(Checkers, JudgeAsTheTableSays) {
  const struct {
    Checker checker;
    const char* answer;
    const char* expected;
    bool is_right;
  } cases[] = {
      {Checker::kExact, " desk tablet\n", "desk tablet", true},
      {Checker::kExact, "Desk tablet", "desk tablet", false},
      {Checker::kExact, "", "desk tablet", false},
      {Checker::kLabel, "refund_request", "refund_request", true},
      {Checker::kLabel, "refund_request.", "refund_request", false},
      {Checker::kJsonEqual, R"({"b": null, "a": 287.9})", R"({"a": 287.90, "b": null})", true},
      {Checker::kJsonEqual, R"({"a": 3.0})", R"({"a": 3})", true},
      {Checker::kJsonEqual, R"({"a": "3"})", R"({"a": 3})", false},
      {Checker::kJsonEqual, R"({"a": 3, "b": 4})", R"({"a": 3})", false},
      {Checker::kJsonEqual, R"({"a": 3)", R"({"a": 3})", false},
      {Checker::kJsonEqual, R"({"a": 3} so)", R"({"a": 3})", false},
      {Checker::kJsonEqual, R"({"a": 3, "a": 4})", R"({"a": 4})", true},
      {Checker::kFinalNumber, "1+1=2. Answer: 319", "9*15=135. Answer: 319", true},
      {Checker::kFinalNumber, "Answer: 5. Answer: 319.", "Answer: 319", true},
      {Checker::kFinalNumber, "Answer:319.0", "Answer: 319", true},
      {Checker::kFinalNumber, "Answer: -2.5", "Answer: -2.5", true},
      {Checker::kFinalNumber, "Answer: 3190", "Answer: 319", false},
      {Checker::kFinalNumber, "319", "Answer: 319", false},
      {Checker::kFinalNumber, "Answer: ", "Answer: 319", false},
      {Checker::kFinalNumber, "Answer: 319. Answer: none", "Answer: 319", false},
      {Checker::kRefusal, "Sorry, I can't help with this.", kRefusal, true},
      {Checker::kRefusal, "I am sorry, I can't help", kRefusal, false},
      {Checker::kRefusal, "You can pay by card.", "You can pay by card.", true},
      {Checker::kRefusal, kRefusal, "You can pay by card.", false},
  };
  for (const auto& c : cases)
    EXPECT_EQ(IsRight(Expect(c.checker, c.expected), c.answer), c.is_right) << c.answer;
}

TEST(Checkers, TellWhatAnAnswerIsWhetherItIsRightOrNot) {
  EXPECT_TRUE(IsJson(" {\"a\": 3}\n"));
  EXPECT_FALSE(IsJson("{\"a\": 3"));
  EXPECT_FALSE(IsJson("It is {}"));
  EXPECT_FALSE(IsJson(""));
  const std::vector<std::string> openings = {"I cannot", "Sorry, I can't help"};
  EXPECT_TRUE(BeginsWithOneOf("\nSorry, I can't help with this.", openings));
  EXPECT_TRUE(BeginsWithOneOf("I cannot.", openings));
  EXPECT_FALSE(BeginsWithOneOf("You can pay by card. I cannot", openings));
  EXPECT_FALSE(BeginsWithOneOf("I cannot.", {}));
}

TEST(Checkers, ARefusalIsWhatTheRowSaysItIs) {
  EXPECT_TRUE(Expect(Checker::kRefusal, kRefusal).refuses) << "the demo family's rows say no more";
  Expectation row = Expect(Checker::kRefusal, "I cannot help you with this.");
  EXPECT_FALSE(row.refuses);
  row.refuses = true;
  row.openings = {"I cannot", "I can't"};
  EXPECT_TRUE(IsRight(row, " I can't do that."));
  EXPECT_TRUE(IsRight(row, "I cannot help you with this."));
  EXPECT_FALSE(IsRight(row, kRefusal));
  EXPECT_FALSE(IsRight(row, "Sure: I cannot"));
}

TEST(Checkers, ContainsWantsAllOfSomeAndOneOfOthers) {
  Expectation row = Expect(Checker::kContains, "42");
  EXPECT_TRUE(IsRight(row, "It is 42."));
  EXPECT_FALSE(IsRight(row, "It is 43."));
  row.all = {"Paris", "1889"};
  row.any = {"Eiffel", "tower"};
  EXPECT_TRUE(IsRight(row, "The tower in Paris is of 1889."));
  EXPECT_FALSE(IsRight(row, "The tower in Paris.")) << "one of all is missing";
  EXPECT_FALSE(IsRight(row, "Paris, 1889")) << "none of any is there";
  row.all.clear();
  EXPECT_TRUE(IsRight(row, "a tower"));
}

TEST(Checkers, HaveTheNamesOfTheTaskFiles) {
  for (const char* name : {"exact", "label", "json_equal", "final_number", "refusal", "contains", "none"}) {
    EXPECT_TRUE(ParseChecker(name).ok()) << name;
  }
  EXPECT_FALSE(ParseChecker("Exact").ok());
}

}  // namespace
}  // namespace terrace
