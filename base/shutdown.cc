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

sigset_t Signals(ShutdownSignal::Hangup hangup) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  if (hangup == ShutdownSignal::Hangup::kIsWaitedFor) sigaddset(&signals, SIGHUP);
  return signals;
}

}  // namespace

ShutdownSignal::ShutdownSignal(Hangup hangup) : hangup_(hangup) {
  const sigset_t signals = Signals(hangup_);
  CHECK(pthread_sigmask(SIG_BLOCK, &signals, nullptr) == 0);
  std::signal(SIGPIPE, SIG_IGN);
}

ShutdownSignal::~ShutdownSignal() {
  while (WaitFor(0) != 0) {  // an impatient second Ctrl-C must not turn a clean end into a kill
  }
  const sigset_t signals = Signals(hangup_);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

int ShutdownSignal::WaitFor(double seconds) {
  const MonoTime deadline = RealClock().Now() + Duration(std::llround(std::clamp(seconds, 0.0, 1e8) * 1e9));
  const sigset_t signals = Signals(hangup_);
  while (true) {
    const timespec timeout = TimespecOf(deadline - RealClock().Now());
    const int signal = sigtimedwait(&signals, nullptr, &timeout);
    if (signal > 0) return signal;
    if (errno == EAGAIN) return 0;
    CHECK(errno == EINTR, "sigtimedwait: errno ", errno);
  }
}

bool ShutdownSignal::IsPending() const {
  sigset_t pending;
  return sigpending(&pending) == 0 &&
         (sigismember(&pending, SIGINT) == 1 || sigismember(&pending, SIGTERM) == 1);
}

int ShutdownSignal::Wait(double poll_seconds, const std::function<bool()>& poll) {
  while (true) {
    if (const int signal = WaitFor(poll_seconds); signal != 0) return signal;
    if (poll && poll()) return 0;
  }
}

}  // namespace terrace
