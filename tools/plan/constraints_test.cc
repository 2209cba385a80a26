#include "tools/plan/constraints.h"

#include "base/exit_code.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ParseBytes, ReadsDecimalAndBinaryUnits) {
  const std::pair<const char*, uint64_t> cases[] = {{"1", 1},
                                                    {"100000", 100'000},
                                                    {"17B", 17},
                                                    {"8GiB", uint64_t{8} << 30},
                                                    {"1.5 GB", 1'500'000'000},
                                                    {"0.5KiB", 512},
                                                    {"3MB", 3'000'000},
                                                    {"2TiB", uint64_t{2} << 40}};
  for (const auto& [text, bytes] : cases) EXPECT_EQ(ParseBytes(text).value(), bytes) << text;
}

TEST(ParseBytes, RefusesWhatIsNoSize) {
  for (const char* text :
       {"", "GiB", "8 ", "8gib", "8GiB ", "8  GiB", "-1GiB", "0", "0.1", "nan", "inf", "1e300", "8GiB8"}) {
    const auto bytes = ParseBytes(text);
    EXPECT_EQ(ExitCodeFor(bytes.status()), kExitUsage) << text;
  }
}

}  // namespace
}  // namespace terrace
