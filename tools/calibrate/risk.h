// Which settings keep a rate of losses below a limit, with a guarantee for finite samples: A. N.
// Angelopoulos, S. Bates, E. J. Candes, M. I. Jordan, L. Lei, "Learn then Test: Calibrating predictive
// algorithms to achieve risk control" (2021). Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace terrace {

struct RiskLimit {
  double epsilon = 0.05;  // the rate of losses that is allowed, in (0, 1)
  double delta = 0.1;     // how likely a rate above it may be, in (0, 1)
  size_t starts = 1;      // see FixedSequenceTest
};

// Of "the rate of losses is above epsilon", after `losses` in `rows` independent draws: exact.
double RiskPValue(uint64_t losses, uint64_t rows, double epsilon);

// Fixed sequence testing: p_values are of hypotheses in an order that was chosen without the rows they are
// from, the likeliest to be rejected first. From each of `starts` places, evenly spaced, the beginning among
// them, it rejects as long as p is at most delta / starts. True hypotheses are all kept with probability 1 -
// delta at least, so any choice among the rejected is safe; more starts help only when the beginning may
// fail. [p_values]: whether it is rejected, that is, safe.
std::vector<bool> FixedSequenceTest(std::span<const double> p_values, double delta, size_t starts);

}  // namespace terrace
