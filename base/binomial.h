// The binomial distribution's tail, and the exact bounds on a rate that follow from it. Pure.
#pragma once

#include <cstdint>

namespace terrace {

// ln P(X <= k) of X ~ Binomial(n, p), for p in [0, 1]: a sum of k + 1 terms, in logarithms, as they
// underflow.
double LogBinomialTail(uint64_t k, uint64_t n, double p);

// C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits" (Biometrika 1934): of `losses`
// in `rows` draws. With probability at least 1 - delta over the draws the true rate is at most the upper
// bound; likewise at least the lower one. Of no rows 1 and 0.
double UpperRateBound(uint64_t losses, uint64_t rows, double delta);
double LowerRateBound(uint64_t losses, uint64_t rows, double delta);

}  // namespace terrace
