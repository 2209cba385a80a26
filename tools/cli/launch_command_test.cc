#include "tools/cli/launch_command.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(ShownLine, OnlyInformationIsCut) {
  const std::string fields(1000, 'x');
  const std::string ready = "15:04:05.123 info  worker_ready model=" + fields;
  EXPECT_THAT(ShownLine(ready), testing::StartsWith("15:04:05.123 info  worker_ready model=xxx"));
  EXPECT_LT(ShownLine(ready).size(), 200u);
  for (const std::string& whole :
       {"15:04:05.123 error model_refused reason=" + fields, "15:04:05.123 warn  " + fields,
        "terrace-worker: " + fields + " info " + fields, std::string("15:04:05.123 info  router_ready")}) {
    EXPECT_EQ(ShownLine(whole), whole);
  }
}

TEST(DescribeEnd, SaysThatAWorkerStaysAwayAndWhatBecomesOfAGroup) {
  const ChildExit killed{.name = "worker-nano", .exit_code = 0, .signal = 9, .last_lines = {}};
  EXPECT_EQ(DescribeEnd(killed, AfterEnd::kNothing),
            "worker-nano was killed by signal 9 (Killed); it is not started again, and the others go on");
  EXPECT_EQ(DescribeEnd(killed, AfterEnd::kGroupIsStartedAgain),
            "worker-nano was killed by signal 9 (Killed); its group is lost and is started again");
  EXPECT_EQ(
      DescribeEnd(killed, AfterEnd::kGroupWaits),
      "worker-nano was killed by signal 9 (Killed); its group is lost and is started again later, and the "
      "others go on");
  EXPECT_THAT(
      DescribeEnd({.name = kRouterName, .exit_code = 70, .signal = 0, .last_lines = {}}, AfterEnd::kNothing),
      Not(HasSubstr("others")));
}

}  // namespace
}  // namespace terrace
