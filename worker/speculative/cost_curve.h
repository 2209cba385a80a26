// Seconds that a step takes, by the tokens it computes: learned from steps as they come. Never falling, and
// linear between the numbers of tokens it keeps a figure for. One thread.
//
// - What was measured counts more the nearer it is; all figures follow a little, as contexts grow and
//   machines slow down for steps of every size.
// - Behind the largest number measured a step is believed to take no longer, and what a larger step takes
//   more is believed less the longer ago it was measured: so larger steps are tried, and tried again, though
//   seldom.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace terrace {

class CostCurve {
 public:
  CostCurve() = default;
  // In so many steps half of what a larger step takes more is forgotten.
  explicit CostCurve(double half_life) : half_life_(half_life) {}

  void Learn(double tokens, double seconds);
  // 0 while nothing was measured.
  double Seconds(double tokens) const { return At(&Point::believed, tokens); }
  // The same, with all that was measured believed, however long ago.
  double Measured(double tokens) const { return At(&Point::measured, tokens); }
  bool is_known() const { return steps_ > 0; }
  // Whether the figure nearest to it was measured in the last steps.
  bool is_fresh(double tokens) const;

 private:
  static constexpr std::array<double, 25> kTokens = {1,   2,    3,    4,    6,    8,    12,  16,  24,
                                                     32,  48,   64,   96,   128,  192,  256, 384, 512,
                                                     768, 1024, 1536, 2048, 3072, 4096, 8192};
  struct Figure {
    double seconds = 0;  // as measured; 0: it was not
    uint64_t step = 0;   // of the last measurement
  };

  // Of the curves, where a figure is known.
  struct Point {
    double tokens = 0;
    double believed = 0, measured = 0;  // seconds; the latter if nothing were forgotten
  };

  // Between which figures a number of tokens is, and how much nearer to the upper one: from 0 to 1.
  struct Place {
    double at = 0;  // tokens, within those that figures are kept for
    size_t lower = 0, upper = 0;
    double share = 0;
    size_t nearest() const { return share >= 0.5 ? upper : lower; }
  };

  static Place PlaceOf(double tokens);
  double At(double Point::*curve, double tokens) const;
  void Draw();

  double half_life_ = 512;
  std::array<Figure, kTokens.size()> figures_;
  std::array<Point, kTokens.size()> points_;
  size_t known_ = 0;  // points: the first ones
  uint64_t steps_ = 0;
};

}  // namespace terrace
