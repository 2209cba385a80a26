#include "base/shutdown.h"

#include <csignal>
#include <ctime>

#include <algorithm>
#include <cerrno>
#include <cmath>

#include "base/clock.h"
#include "base/status.h"

namespace terrace {
namespace {

bool IsHangupIgnored() {
  struct sigaction action = {};
  return sigaction(SIGHUP, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

sigset_t SignalsToWaitFor(ShutdownSignal::Hangup hangup) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  // Blocked, it comes although it is ignored.
  if (hangup == ShutdownSignal::Hangup::kDoesNotStop || !IsHangupIgnored()) sigaddset(&signals, SIGHUP);
  return signals;
}

}  // namespace

ShutdownSignal::ShutdownSignal(Hangup hangup) : hangup_(hangup), signals_(SignalsToWaitFor(hangup)) {
  CHECK(pthread_sigmask(SIG_BLOCK, &signals_, nullptr) == 0);
  std::signal(SIGPIPE, SIG_IGN);
}

ShutdownSignal::~ShutdownSignal() {
  while (WaitFor(0) != 0) {  // an impatient second Ctrl-C must not turn a clean end into a kill
  }
  pthread_sigmask(SIG_UNBLOCK, &signals_, nullptr);
}

int ShutdownSignal::WaitFor(double seconds) {
  const MonoTime deadline = RealClock().Now() + Duration(std::llround(std::clamp(seconds, 0.0, 1e8) * 1e9));
  while (true) {
    const timespec timeout = TimespecOf(deadline - RealClock().Now());
    const int signal = sigtimedwait(&signals_, nullptr, &timeout);
    if (signal > 0) return signal;
    if (errno == EAGAIN) return 0;
    CHECK(errno == EINTR, "sigtimedwait: errno ", errno);
  }
}

bool ShutdownSignal::IsPending() const {
  sigset_t pending;
  if (sigpending(&pending) != 0) return false;
  const auto is_pending = [&pending](int signal) { return sigismember(&pending, signal) == 1; };
  return is_pending(SIGINT) || is_pending(SIGTERM) || (hangup_ == Hangup::kStops && is_pending(SIGHUP));
}

int ShutdownSignal::Wait(double poll_seconds, const std::function<bool()>& poll) {
  while (true) {
    if (const int signal = WaitFor(poll_seconds); signal != 0) return signal;
    if (poll && poll()) return 0;
  }
}

}  // namespace terrace
