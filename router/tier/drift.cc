#include "router/tier/drift.h"

#include <cmath>

#include "base/binomial.h"

namespace terrace {

double Agreement(bool is_same_text, size_t equal_leading_tokens, size_t compared) {
  if (is_same_text || compared == 0) return 1;
  return static_cast<double>(equal_leading_tokens) / static_cast<double>(compared);
}

bool DriftWindow::Add(double agreement) {
  const bool agrees = agreement >= options_.min_agreement;
  if (agrees_.size() >= options_.window) {
    if (!agrees_.front()) --disagreements_;
    agrees_.pop_front();
  }
  agrees_.push_back(agrees);
  if (!agrees) ++disagreements_;
  return agrees;
}

bool DriftWindow::has_drifted() const {
  if (disagreements_ == 0) return false;
  // P(X >= d) of n draws at the rate p is P(n - X <= n - d), and n - X has the rate 1 - p.
  const double log_p = LogBinomialTail(pairs() - disagreements_, pairs(), 1 - options_.max_disagreement);
  return log_p <= std::log(options_.delta);
}

double DriftWindow::agreement() const {
  return pairs() == 0 ? 1 : 1 - static_cast<double>(disagreements_) / static_cast<double>(pairs());
}

}  // namespace terrace
