#include "tools/cli/progress_bar.h"

#include <algorithm>

#include "base/status.h"
#include "tools/cli/format.h"

namespace terrace {
namespace {
constexpr size_t kWidth = 30;
constexpr double kSecondsBetween = 0.1;
}  // namespace

ProgressBar::~ProgressBar() {
  if (is_shown_) context_.err << "\r\x1b[K" << std::flush;
}

void ProgressBar::Show(size_t done, size_t total) {
  if (total == 0) return;
  ShowShare(static_cast<double>(done) / static_cast<double>(total), Concat(done, "/", total));
}

void ProgressBar::ShowShare(double share, const std::string& text) {
  const MonoTime now = RealClock().Now();
  if (!context_.is_err_terminal) return;
  if (is_shown_ && share < 1 && Seconds(now - last_shown_) < kSecondsBetween) return;
  last_shown_ = now;
  is_shown_ = true;
  const auto filled = static_cast<size_t>(static_cast<double>(kWidth) * std::clamp(share, 0.0, 1.0));
  const double left = share > 0 ? Seconds(now - start_) * (1 / share - 1) : 0;
  context_.err << "\r\x1b[K" << label_ << " [" << std::string(filled, '=')
               << std::string(kWidth - filled, ' ') << "] " << text << ", " << FormatSeconds(left) << " left"
               << std::flush;
}

}  // namespace terrace
