// exp of sixteen lanes, the same few operations on every instruction set (so the C library's version does not
// matter). Included once per instruction set, after vec16_*.h.
#pragma once

namespace terrace {
namespace {

// Relative error below 2.5e-7 (4 f32 roundings) between the limits. exp(x) is 0 below ln(2^-126), as for
// -infinity, and stays at exp(88.37), 2.4e38, above 88.37; NaN gives NaN.
//
// x = n ln 2 + r with |r| <= ln(2)/2: exp(x) = 2^n exp(r), and exp(r) is the polynomial of the Cephes
// library's expf.
inline Vec16 Exp(Vec16 x) {
  constexpr float kLowest = -87.33654f, kHighest = 88.37f;
  constexpr float kRounder = 0x1.8p23f;  // adding it leaves the nearest integer in the lowest mantissa bits
  const Vec16 clamped = Min(Splat(kHighest), Max(Splat(kLowest), x));
  const Vec16 rounded = Fma(clamped, Splat(1.44269504f), Splat(kRounder));
  const Vec16 n = Sub(rounded, Splat(kRounder));
  Vec16 r = Fma(n, Splat(-0.693359375f),
                clamped);  // ln 2 in two parts: the first has 10 bits, so n times it is exact
  r = Fma(n, Splat(2.12194440e-4f), r);
  Vec16 p = Splat(1.9875691500e-4f);
  p = Fma(p, r, Splat(1.3981999507e-3f));
  p = Fma(p, r, Splat(8.3334519073e-3f));
  p = Fma(p, r, Splat(4.1665795894e-2f));
  p = Fma(p, r, Splat(1.6666665459e-1f));
  p = Fma(p, r, Splat(5.0000001201e-1f));
  p = Fma(Mul(r, r), p, Add(r, Splat(1)));
  return ZeroBelow(x, kLowest, Mul(p, PowerOfTwo(rounded)));
}

}  // namespace
}  // namespace terrace
