// SIGINT, SIGTERM and SIGHUP as something a main can wait for. Made once, first thing in main, before any
// thread: it blocks the signals for all threads. SIGPIPE is ignored. A SIGHUP that was ignored
// before, as under nohup, stays so, unless it is wanted for something else than stopping.
#pragma once

#include <csignal>
#include <functional>

namespace terrace {

class ShutdownSignal {
 public:
  enum class Hangup { kStops, kDoesNotStop };  // whether SIGHUP is one more signal to stop
  explicit ShutdownSignal(Hangup hangup = Hangup::kStops);
  ~ShutdownSignal();
  // Blocks until the first signal, or until `poll`, called about every `poll_seconds`, returns true. Returns
  // the signal number, or 0 for the poll.
  int Wait(double poll_seconds = 3600, const std::function<bool()>& poll = nullptr);
  // Waits up to `seconds`; the signal number or 0.
  int WaitFor(double seconds);
  // A signal to stop is there that no call has returned yet. Any thread.
  bool IsPending() const;

 private:
  const Hangup hangup_;
  const sigset_t signals_;
};

}  // namespace terrace
