#include "base/status.h"

#include "base/exit_code.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

StatusOr<int> Half(int value) {
  if (value % 2 != 0) return WithReason(InvalidArgument("odd: ", value), "odd_value");
  return value / 2;
}

StatusOr<int> Quarter(int value) {
  ASSIGN_OR_RETURN(const int half, Half(value));
  ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}

TEST(Status, MacrosPassErrorsOn) {
  EXPECT_EQ(Quarter(8).value(), 2);
  EXPECT_EQ(Message(Quarter(6).status()), "odd: 3");
}

TEST(Status, AnnotateKeepsCodeAndReason) {
  const Status annotated = Annotate(Half(3).status(), "file.gguf");
  EXPECT_EQ(Message(annotated), "file.gguf: odd: 3");
  EXPECT_EQ(annotated.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Reason(annotated), "odd_value");
  EXPECT_EQ(Reason(Annotate(Internal("x"), "y")), "");
}

TEST(ExitCode, MalformedDataIs65AndConfigIs78) {
  EXPECT_EQ(ExitCodeFor(DataLoss("x")), 65);
  EXPECT_EQ(ExitCodeFor(FailedPrecondition("x")), 78);
  EXPECT_EQ(ExitCodeFor(NotFound("x")), 66);
  EXPECT_EQ(ExitCodeFor(Status(StatusCode::kUnauthenticated, "x")), 77);
}

TEST(CheckDeathTest, PrintsConditionAndValues) {
  const int size = 3;
  EXPECT_DEATH(CHECK(size < 2, "size ", size, " limit ", 2), "CHECK failed: size < 2 size 3 limit 2");
}

}  // namespace
}  // namespace terrace
