#include "base/drain.h"

#include <csignal>

#include "base/clock.h"

namespace terrace {
namespace {

constexpr double kPollSeconds = 0.05;

}  // namespace

void AwaitDrained(ShutdownSignal& shutdown, const std::function<bool()>& is_drained, double limit_seconds) {
  const MonoTime begin = RealClock().Now();
  const auto is_over = [&] { return is_drained() || Seconds(RealClock().Now() - begin) >= limit_seconds; };
  // A hangup is too late for a reload, or the second one of a terminal that was closed.
  while (!is_over() && shutdown.Wait(kPollSeconds, is_over) == SIGHUP) {
  }
}

}  // namespace terrace
