#include "base/binomial.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

double Tail(uint64_t k, uint64_t n, double p) { return std::exp(LogBinomialTail(k, n, p)); }

// Each of at most n terms is rounded by half a unit in the last place of the largest of them.
double Tolerance(uint64_t n, double p) {
  const double terms = static_cast<double>(n);
  return 1e-13 + terms * terms * std::abs(std::log(p) + std::log1p(-p)) * 0x1p-53;
}

// P(X = k) of all k, by definition: Pascal's triangle with weights.
std::vector<long double> Masses(uint64_t n, long double p) {
  std::vector<long double> masses = {1};
  for (uint64_t draw = 0; draw < n; ++draw) {
    masses.push_back(0);
    for (size_t k = masses.size() - 1; k > 0; --k) masses[k] = masses[k] * (1 - p) + masses[k - 1] * p;
    masses[0] *= 1 - p;
  }
  return masses;
}

TEST(BinomialTail, IsTheExactRationalForQuarters) {
  for (const uint64_t quarters : {1u, 2u, 3u}) {
    for (uint64_t n = 1; n <= 24; ++n) {  // 4^24 < 2^53: numerator and denominator are exact in a double
      uint64_t choose = 1, numerator = 0;
      for (uint64_t k = 0; k < n; ++k) {
        uint64_t mass = choose;
        for (uint64_t i = 0; i < n; ++i) mass *= i < k ? quarters : 4 - quarters;
        numerator += mass;
        const double want = static_cast<double>(numerator) / std::ldexp(1.0, 2 * static_cast<int>(n));
        EXPECT_NEAR(Tail(k, n, static_cast<double>(quarters) / 4) / want, 1, Tolerance(n, 0.25))
            << k << " of " << n;
        choose = choose * (n - k) / (k + 1);
      }
    }
  }
}

TEST(BinomialTail, IsTheSumOfTheMassesAndOfItsMirrorOne) {
  for (const double p : {1e-6, 0.01, 0.3, 0.5, 0.95}) {
    for (const uint64_t n : {1u, 7u, 60u, 600u}) {
      const std::vector<long double> masses = Masses(n, p);
      long double sum = 0;
      for (uint64_t k = 0; k < n; ++k) {
        sum += masses[k];
        EXPECT_NEAR(Tail(k, n, p), static_cast<double>(sum), Tolerance(n, p))
            << k << " of " << n << " at " << p;
        EXPECT_NEAR(Tail(k, n, p) + Tail(n - k - 1, n, 1 - p), 1, 2 * Tolerance(n, p))
            << k << " of " << n << " at " << p;
      }
      EXPECT_EQ(Tail(n, n, p), 1);
    }
  }
}

TEST(BinomialTail, RisesWithKAndFallsWithNAndP) {
  for (uint64_t n = 1; n < 40; ++n) {
    for (uint64_t k = 0; k < n; ++k) {
      for (double p = 0.05; p < 0.95; p += 0.05) {
        const double tail = LogBinomialTail(k, n, p);
        EXPECT_LE(tail, 0);
        EXPECT_LE(tail, LogBinomialTail(k + 1, n, p));
        EXPECT_GE(tail + Tolerance(n, p), LogBinomialTail(k, n + 1, p));
        EXPECT_GE(tail + Tolerance(n, p), LogBinomialTail(k, n, p + 0.05));
      }
    }
  }
}

TEST(BinomialTail, DoesNotUnderflow) {
  // Of 10^6 draws none: n ln(1 - p).
  EXPECT_DOUBLE_EQ(LogBinomialTail(0, 1'000'000, 0.5), 1e6 * std::log(0.5));
  // Half of them at most, of an odd number, is even odds.
  EXPECT_NEAR(LogBinomialTail(50'000, 100'001, 0.5), std::log(0.5), Tolerance(100'001, 0.5));
  EXPECT_EQ(LogBinomialTail(3, 10, 0), 0);
  EXPECT_EQ(LogBinomialTail(3, 10, 1), -INFINITY);
  EXPECT_EQ(LogBinomialTail(0, 0, 1), 0);
}

TEST(RateBounds, AreWhereTheTailIsDelta) {
  for (const double delta : {0.001, 0.1, 0.5}) {
    for (const uint64_t rows : {1u, 10u, 120u}) {
      for (uint64_t losses = 0; losses < rows; ++losses) {
        const double bound = UpperRateBound(losses, rows, delta);
        EXPECT_GT(bound, static_cast<double>(losses) / static_cast<double>(rows));
        EXPECT_NEAR(Tail(losses, rows, bound), delta, 1e-9) << losses << " of " << rows;
      }
      EXPECT_EQ(UpperRateBound(rows, rows, delta), 1);
      // None of n: (1 - bound)^n = delta.
      EXPECT_NEAR(UpperRateBound(0, rows, delta), 1 - std::pow(delta, 1.0 / static_cast<double>(rows)),
                  1e-12);
      EXPECT_EQ(LowerRateBound(0, rows, delta), 0);
    }
    EXPECT_EQ(UpperRateBound(0, 0, delta), 1);
    EXPECT_EQ(LowerRateBound(0, 0, delta), 0);
  }
}

// Every outcome of every small experiment: the share of those whose bound holds, weighted by how likely they
// are.
TEST(RateBounds, HoldAtLeastAsOftenAsTheySay) {
  for (const double delta : {0.02, 0.1, 0.3}) {
    for (const uint64_t rows : {1u, 2u, 5u, 13u, 30u}) {
      std::vector<double> upper, lower;
      for (uint64_t losses = 0; losses <= rows; ++losses) {
        upper.push_back(UpperRateBound(losses, rows, delta));
        lower.push_back(LowerRateBound(losses, rows, delta));
      }
      for (int percent = 0; percent <= 100; ++percent) {
        const double rate = percent / 100.0;
        const std::vector<long double> masses = Masses(rows, rate);
        long double below_upper = 0, above_lower = 0;
        for (uint64_t losses = 0; losses <= rows; ++losses) {
          if (rate <= upper[losses]) below_upper += masses[losses];
          if (rate >= lower[losses]) above_lower += masses[losses];
        }
        EXPECT_GE(below_upper, 1 - delta - 1e-12L) << rate << ", " << rows << " rows";
        EXPECT_GE(above_lower, 1 - delta - 1e-12L) << rate << ", " << rows << " rows";
      }
    }
  }
}

}  // namespace
}  // namespace terrace
