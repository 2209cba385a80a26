#include "tools/cli/speculation_text.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(DescribeSpeculation, SaysWhatIsKnownAndNoMore) {
  EXPECT_EQ(DescribeSpeculation({}), "");
  EXPECT_EQ(DescribeSpeculation({.verified = 1234, .accepted = 812}),
            "drafts: 1,234 tokens verified, 812 accepted (65.8%)");
  SpeculationStats stats{.drafter = "ngram", .drafting_seconds = 0.25, .saved_seconds = -0.25};
  EXPECT_EQ(
      DescribeSpeculation({.engine = stats}),
      "drafts (ngram): 0 tokens verified, 0 accepted (-); 0 proposed; 250 ms lost, drafting took 250 ms");
  stats.proposed[0] = 1000, stats.proposed[1] = 900;
  stats.verified[0] = 4, stats.accepted[0] = 3;
  stats.verified[1] = 3, stats.accepted[1] = 3;
  stats.passes = 4;
  stats.saved_seconds = 1.5;
  stats.failures = 1;
  EXPECT_EQ(DescribeSpeculation({.verified = 7, .accepted = 6, .engine = stats}),
            "drafts (ngram): 7 tokens verified, 6 accepted (85.7%); 1,900 proposed; by place 1: 75%, "
            "2: 100%, 3: -, 4: -, 5-8: -, 9+: -; 2.50 tokens a pass; 1.5 s saved, drafting took 250 ms; "
            "the drafter failed");
  stats.branch_proposed = 10, stats.branch_verified = 8, stats.branch_accepted = 2;
  EXPECT_EQ(DescribeSpeculation({.verified = 15, .accepted = 8, .engine = stats}),
            "drafts (ngram): 15 tokens verified, 8 accepted (53.3%); 1,910 proposed; by place 1: 75%, "
            "2: 100%, 3: -, 4: -, 5-8: -, 9+: -; second guesses: 25%; 3.00 tokens a pass; 1.5 s saved, "
            "drafting took 250 ms; the drafter failed");
}

}  // namespace
}  // namespace terrace
