// Two models' answers to the same rows: how much better one is, and whether it is not worse. Pure.
//
// T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
// paired-sample design" (Statistics in Medicine 17, 1998): the score statistic of a hypothesis "the
// difference is d" is (gained - lost - n d) / sqrt(n (2 q + d (1 - d))), where q is the likeliest probability
// of a lost row under it. It is close to a standard normal one also where few rows differ, as it is of a
// model and what it was quantized to; the test of a margin and the interval are one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace terrace {

// Rows by who was right.
struct PairedCounts {
  uint64_t both = 0;
  uint64_t gained = 0;  // the candidate alone
  uint64_t lost = 0;    // the baseline alone
  uint64_t neither = 0;

  void Add(bool is_candidate_right, bool is_baseline_right);
  uint64_t rows() const { return both + gained + lost + neither; }
  // 0 of no rows, like the next two.
  double candidate_rate() const;
  double baseline_rate() const;
  double difference() const;  // candidate less baseline
};

// The score statistic; infinite where the hypothesis makes the counts impossible. `difference` in (-1, 1).
double TangoScore(const PairedCounts& counts, double difference);

struct Interval {
  double low = -1, high = 1;
};
// All differences whose score is as likely as `confidence`, in (0, 1), has it, both sides alike. Of no rows
// all of [-1, 1].
Interval TangoInterval(const PairedCounts& counts, double confidence);

// Of the hypothesis that the candidate is worse by `margin`, in (0, 1), or more: the probability of a score
// as high were it worse by just that, which is an approximation, and at least the exact probability of so few
// lost rows and so many gained ones, the largest for any share that is gained. Of what is worse by the margin
// a p-value of 0.05 or less comes with a probability of at most 0.05 where that takes no lost row, and of
// about 0.06 elsewhere, however many rows differ. 1 of no rows.
double NonInferiorityPValue(const PairedCounts& counts, double margin);

// Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages"
// (Psychometrika 12, 1947), exact and two-sided: the probability that gained and lost rows are as far apart
// or further, were each row that differs as likely the one as the other.
double McNemarPValue(const PairedCounts& counts);

// S. Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of Statistics 6,
// 1979): rejecting what is at most a level rejects no true hypothesis with probability 1 - level at least,
// whatever depends on what. [p_values], in their order.
std::vector<double> HolmAdjusted(std::span<const double> p_values);

// Rows that are needed until the margin can be shown at the level, even when no row differs; 1e18 at most.
uint64_t LeastRows(double margin, double level);

enum class ComparisonVerdict : uint8_t {
  kNonInferior,  // it is not worse by the margin: the adjusted p-value is at most the level
  kInferior,     // it is worse by the margin: the whole interval is
  kUndecided,    // neither is shown: more rows are needed
};
const char* ComparisonVerdictName(ComparisonVerdict verdict);  // "non-inferior", "inferior", "undecided"

struct NamedCounts {
  std::string name = {};
  PairedCounts counts = {};
};

struct ComparisonOptions {
  double margin = 0.05;  // (0, 1): a share of the rows
  double level = 0.05;   // (0, 0.5), about: of all verdicts of non-inferiority together
};

struct PairedComparison {
  std::string name = {};
  PairedCounts counts = {};
  Interval interval = {};  // at confidence 1 - 2 level: its low end is above -margin where p_value <= level
  double mcnemar_p = 1;
  double p_value = 1, adjusted_p = 1;  // of NonInferiorityPValue; by Holm, of all that are given
  ComparisonVerdict verdict = ComparisonVerdict::kUndecided;
};

std::vector<PairedComparison> ComparePaired(std::span<const NamedCounts> tasks,
                                            const ComparisonOptions& options);

}  // namespace terrace
