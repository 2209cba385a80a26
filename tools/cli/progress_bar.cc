#include "tools/cli/progress_bar.h"

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

void ProgressBar::Show(size_t done, size_t total, const std::string& note) {
  const MonoTime now = RealClock().Now();
  if (!context_.is_err_terminal || total == 0) return;
  if (is_shown_ && done < total && Seconds(now - last_shown_) < kSecondsBetween) return;
  last_shown_ = now;
  is_shown_ = true;
  const size_t filled = kWidth * done / total;
  const double elapsed = Seconds(now - start_);
  const double left = done == 0 ? 0 : elapsed / static_cast<double>(done) * static_cast<double>(total - done);
  context_.err << "\r\x1b[K" << label_ << " [" << std::string(filled, '=')
               << std::string(kWidth - filled, ' ') << "] " << done << "/" << total << ", " << note
               << (note.empty() ? "" : ", ") << FormatSeconds(left) << " left" << std::flush;
}

}  // namespace terrace
