// What is saved up for looking at a drafter that does not pay: a share of the time of all steps, for some
// steps at most. Owned by an Asking; one thread.
#pragma once

#include <algorithm>

namespace terrace {

class ProbeSavings {
 public:
  static constexpr double kMostSteps = 20;  // worth of them may be saved up

  explicit ProbeSavings(double share) : share_(share) {}

  // After a step. Where steps have become shorter, what was saved up stays.
  void Earn(double step_seconds) {
    seconds_ = std::min(seconds_ + share_ * step_seconds, std::max(kMostSteps * step_seconds, seconds_));
  }
  // False where so much is not there: then nothing is paid.
  bool Pay(double seconds) {
    if (seconds_ < seconds) return false;
    seconds_ -= seconds;
    return true;
  }

 private:
  const double share_;
  double seconds_ = 0;
};

}  // namespace terrace
