#include "tools/plan/constraints.h"

#include "base/exit_code.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ParseBytes, ReadsDecimalAndBinaryUnits) {
  const std::pair<const char*, uint64_t> cases[] = {{"1B", 1},
                                                    {"100000B", 100'000},
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
       {"", "GiB", "8 ", "8gib", "8GiB ", "8  GiB", "-1GiB", "0B", "0.1B", "nan", "inf", "1e300B", "8GiB8"}) {
    const auto bytes = ParseBytes(text);
    EXPECT_EQ(ExitCodeFor(bytes.status()), kExitUsage) << text;
  }
}

TEST(ParseBytes, WantsAUnit) {
  for (const char* text : {"0", "5", "2.5", "100000"}) {
    EXPECT_EQ(Message(ParseBytes(text).status()),
              Concat("\"", text, "\" has no unit; a size is such as 8GiB, 512MiB or 1.5GB"));
  }
}

}  // namespace
}  // namespace terrace
