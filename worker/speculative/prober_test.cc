#include "worker/speculative/prober.h"

#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr double kShare = 0.005;
constexpr uint32_t kMaxPass = 100;

// A pass of one token takes 0.5 s, one of 100 takes 2 s.
PassCosts Costs() {
  PassCosts costs(kMaxPass);
  const uint32_t one[] = {1}, hundred[] = {kMaxPass};
  costs.Learn(one, 0.5);
  costs.Learn(hundred, 2);
  return costs;
}

std::vector<uint32_t> Probe(Prober& prober, const PassCosts& costs,
                            const std::vector<DraftCandidate>& candidates, std::vector<uint32_t> lengths) {
  prober.Probe(costs, candidates, lengths);
  return lengths;
}

// With all that may be saved up for steps of 1 s.
Prober Rich() {
  Prober prober(1);
  for (int step = 0; step < 100; ++step) prober.Earn(1);
  return prober;
}

TEST(Prober, LooksWhenAShareOfTheTimePaysForIt) {
  const PassCosts costs = Costs();
  const Acceptance unknown;
  Prober prober(kShare);
  uint32_t probes = 0;
  for (int step = 0; step < 10000; ++step) {
    prober.Earn(1);
    probes += Probe(prober, costs, {{.id = 1, .most = 8, .missing = 1, .acceptance = &unknown}}, {0})[0];
  }
  EXPECT_LE(probes * 0.5, kShare * 10000 + 1e-6);
  EXPECT_GE(probes * 0.5, 0.9 * kShare * 10000);
}

TEST(Prober, TakesWhomTheModelHasLeastToReadFor) {
  const PassCosts costs = Costs();
  const Acceptance unknown;
  Prober prober = Rich();
  const std::vector<DraftCandidate> candidates = {{.id = 1, .most = 8, .missing = 50, .acceptance = &unknown},
                                                  {.id = 2, .most = 8, .missing = 2, .acceptance = &unknown},
                                                  {.id = 3, .most = 8, .missing = 9, .acceptance = &unknown}};
  EXPECT_EQ(Probe(prober, costs, candidates, {0, 0, 0}), (std::vector<uint32_t>{0, 1, 0}));
}

TEST(Prober, LeavesAloneWhomThereIsNothingToLearnFrom) {
  Acceptance wrong;
  wrong.Add(1, 0);
  const Acceptance unknown;
  const struct {
    const char* name;
    PassCosts costs;
    DraftCandidate candidate;
    uint32_t length;
  } cases[] = {
      {"it gets a draft", Costs(), {.id = 1, .most = 8, .acceptance = &unknown}, 3},
      {"it may have none", Costs(), {.id = 1, .most = 0, .acceptance = &unknown}, 0},
      {"it was looked at just now", Costs(), {.id = 1, .most = 8, .acceptance = &wrong}, 0},
      {"what it costs is unknown", PassCosts(kMaxPass), {.id = 1, .most = 8, .acceptance = &unknown}, 0}};
  for (const auto& c : cases) {
    Prober prober = Rich();
    EXPECT_EQ(Probe(prober, c.costs, {c.candidate}, {c.length})[0], c.length) << c.name;
  }
  Prober prober = Rich();
  EXPECT_EQ(Probe(prober, Costs(), {{.id = 1, .most = 8, .acceptance = &unknown}}, {0})[0], 1u);
}

// 280 tokens take three calls: 5.6 s, that 1120 steps of 1 s pay for.
TEST(Prober, WhatIsPaidForIsReadToItsEnd) {
  const PassCosts costs = Costs();
  const Acceptance unknown;
  Prober prober(kShare);
  const auto probe = [&](uint32_t missing) {
    return Probe(prober, costs, {{.id = 3, .most = 8, .missing = missing, .acceptance = &unknown}}, {0})[0];
  };
  uint32_t steps = 0;
  do {
    prober.Earn(1);
    ++steps;
    ASSERT_LT(steps, 1200u);
  } while (probe(280) == 0);
  EXPECT_GE(steps, 1100u);
  EXPECT_EQ(probe(181), 1u);  // the answer goes on meanwhile
  EXPECT_EQ(probe(82), 1u);
  EXPECT_EQ(probe(1), 0u) << "it was read";
}

TEST(Prober, WhatWasPaidForOneIsNotSpentOnAnother) {
  const PassCosts costs = Costs();
  const Acceptance unknown;
  Prober prober(kShare);
  for (int step = 0; step < 1150; ++step) prober.Earn(1);
  const DraftCandidate paid{.id = 3, .most = 8, .missing = 280, .acceptance = &unknown};
  const DraftCandidate other{.id = 4, .most = 8, .missing = 280, .acceptance = &unknown};
  EXPECT_EQ(Probe(prober, costs, {paid}, {0})[0], 1u);
  EXPECT_EQ(Probe(prober, costs, {other}, {0})[0], 0u) << "the paid one has no place in this step";
  EXPECT_EQ(Probe(prober, costs, {other, paid}, {0, 0}), (std::vector<uint32_t>{0, 1}));
}

}  // namespace
}  // namespace terrace
