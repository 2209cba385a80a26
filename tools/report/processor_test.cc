#include "tools/report/processor.h"

#include <sstream>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ProcessorName, IsThatOfTheFirstProcessor) {
  std::istringstream of_two(
      "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel "
      "name\t: another\n");
  EXPECT_EQ(ProcessorName(of_two), "AMD EPYC, family 26 model 2");
  std::istringstream bare("model name : One\n");
  EXPECT_EQ(ProcessorName(bare), "One");
  std::istringstream none("processor : 0\n");
  EXPECT_EQ(ProcessorName(none), "unknown processor");
  EXPECT_FALSE(ThisProcessor().empty());
}

}  // namespace
}  // namespace terrace
