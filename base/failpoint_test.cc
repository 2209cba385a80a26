#include "base/failpoint.h"

#include <csignal>
#include <cstdlib>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#ifndef TERRACE_FAILPOINTS
#error "this test is built with them"
#endif

namespace terrace {
namespace {

using Action = Failpoints::Action;
using testing::ElementsAre;
using testing::HasSubstr;

// What happens each of the first `times` that `name` is reached.
std::vector<Action> Reach(Failpoints& failpoints, const char* name, int times,
                          std::span<const int32_t> values = {}) {
  std::vector<Action> out;
  for (int i = 0; i < times; ++i) out.push_back(failpoints.Reach(name, values));
  return out;
}

TEST(Failpoints, AFaultHappensAtItsPlaceAtEveryTimeOrAtTheOneNamed) {
  Failpoints failpoints = Failpoints::Parse("a=error;b=kill@3;;c=stop@1;").value();
  EXPECT_THAT(Reach(failpoints, "a", 2), ElementsAre(Action::kError, Action::kError));
  EXPECT_THAT(Reach(failpoints, "b", 4),
              ElementsAre(Action::kNone, Action::kNone, Action::kKill, Action::kNone));
  EXPECT_THAT(Reach(failpoints, "c", 2), ElementsAre(Action::kStop, Action::kNone));
  EXPECT_THAT(Reach(failpoints, "d", 1), ElementsAre(Action::kNone));
}

TEST(Failpoints, AFaultOfAValueHappensOnlyWhereThatIsAmongThem) {
  Failpoints failpoints = Failpoints::Parse("tokens:7=kill@2;tokens:-1=error").value();
  const std::vector<int32_t> none, others = {1, 2, 70}, seven = {1, 7, 7}, minus_one = {-1};
  EXPECT_THAT(Reach(failpoints, "tokens", 1, none), ElementsAre(Action::kNone));
  EXPECT_THAT(Reach(failpoints, "tokens", 1, seven), ElementsAre(Action::kNone)) << "the first time";
  EXPECT_THAT(Reach(failpoints, "tokens", 1, others), ElementsAre(Action::kNone)) << "not counted";
  EXPECT_THAT(Reach(failpoints, "tokens", 1, seven), ElementsAre(Action::kKill));
  EXPECT_THAT(Reach(failpoints, "tokens", 1, minus_one), ElementsAre(Action::kError));
}

TEST(Failpoints, OfSeveralFaultsAtOncePlaceTheWorstHappens) {
  Failpoints failpoints = Failpoints::Parse("a=kill@2;a=error").value();
  EXPECT_THAT(Reach(failpoints, "a", 3), ElementsAre(Action::kError, Action::kKill, Action::kError));
}

TEST(Failpoints, WhatIsNoFaultIsAnErrorThatShowsIt) {
  EXPECT_TRUE(Failpoints::Parse("").ok());
  for (const char* text : {"a", "=kill", "a=", "a=maim", "a=kill@", "a=kill@0", "a=kill@-1", "a=kill@2x",
                           "a:=kill", "a:x=kill", "a:99999999999=kill", "good=kill;bad"}) {
    const auto parsed = Failpoints::Parse(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_THAT(Message(parsed.status()), HasSubstr("NAME[:VALUE]=")) << text;
  }
}

TEST(Failpoints, AFaultThatCannotHappenIsAnErrorThatSaysWhy) {
  const FailpointPlace places[] = {
      {.name = "plain"}, {.name = "values", .has_values = true}, {.name = "call", .takes_error = true}};
  const auto check = [&](const char* text) { return Failpoints::Parse(text)->Check(places); };
  EXPECT_TRUE(check("plain=kill@3;values=stop;values:7=kill;call=error@2;call=kill").ok());
  const struct {
    const char* faults;
    const char* error;
  } cases[] = {{"plian=kill", "there is no place \"plian\", known: plain, values, call"},
               {"plain=kill;plain:7=kill", "plain has no values, got :7"},
               {"values=error", "values can give no error, only kill or stop"},
               {"plain:5=error", "plain has no values"}};
  for (const auto& c : cases) {
    const Status status = check(c.faults);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.faults;
    EXPECT_THAT(Message(status), HasSubstr(c.error));
  }
}

// The environment is read once: when the first place below is reached.
[[maybe_unused]] const int kArmed =
    setenv("TERRACE_FAILPOINTS", "test.error=error@2;test.kill:5=kill;test.pass=error", /*overwrite=*/1);

Status Call() {
  RETURN_IF_ERROR(TERRACE_FAILPOINT_STATUS("test.error"));
  return {};
}

TEST(Failpoint, AnErrorIsReturnedAtTheTimeNamed) {
  EXPECT_TRUE(Call().ok());
  const Status error = Call();
  EXPECT_EQ(error.code(), StatusCode::kInternal);
  EXPECT_EQ(Reason(error), "failpoint");
  EXPECT_THAT(Message(error), HasSubstr("test.error"));
  EXPECT_TRUE(Call().ok());
}

TEST(FailpointDeathTest, AProcessKillsItselfAndSaysWhere) {
  const std::vector<int32_t> harmless = {4, 6}, harmful = {4, 5};
  TERRACE_FAILPOINT("test.unarmed");
  TERRACE_FAILPOINT("test.kill", harmless);
  EXPECT_EXIT(TERRACE_FAILPOINT("test.kill", harmful), testing::KilledBySignal(SIGKILL),
              "failpoint test.kill: kill");
}

TEST(FailpointDeathTest, AProcessDoesNotStartWithAFaultOfNoPlaceOfTheCode) {
  EXPECT_EXIT(TERRACE_ARM_FAILPOINTS(), testing::ExitedWithCode(78), "there is no place \"test.error\"");
}

TEST(FailpointDeathTest, AnErrorWhereNoneCanBeGivenIsNotPassedOver) {
  EXPECT_DEATH(TERRACE_FAILPOINT("test.pass"), "can give no error");
}

}  // namespace
}  // namespace terrace
