#include "base/shutdown.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "base/drain.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ShutdownSignal, ReportsTheSignalThatCame) {
  std::signal(SIGHUP, SIG_DFL);  // whatever these tests run under
  ShutdownSignal shutdown;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    kill(getpid(), signal);
    EXPECT_EQ(shutdown.Wait(), signal);
  }
  EXPECT_EQ(shutdown.WaitFor(0), 0);
}

TEST(ShutdownSignal, IsPendingUntilACallReturnsIt) {
  ShutdownSignal shutdown;
  EXPECT_FALSE(shutdown.IsPending());
  kill(getpid(), SIGTERM);
  EXPECT_TRUE(shutdown.IsPending());
  EXPECT_EQ(shutdown.WaitFor(0), SIGTERM);
  EXPECT_FALSE(shutdown.IsPending());
}

TEST(ShutdownSignal, AHangupStopsUnlessItIsWantedForSomethingElse) {
  std::signal(SIGHUP, SIG_DFL);
  for (const auto hangup : {ShutdownSignal::Hangup::kStops, ShutdownSignal::Hangup::kDoesNotStop}) {
    ShutdownSignal shutdown(hangup);
    kill(getpid(), SIGHUP);
    EXPECT_EQ(shutdown.IsPending(), hangup == ShutdownSignal::Hangup::kStops);
    EXPECT_EQ(shutdown.WaitFor(0), SIGHUP);
  }
}

TEST(ShutdownSignal, AHangupThatIsIgnoredStaysSo) {
  std::signal(SIGHUP, SIG_IGN);
  {
    ShutdownSignal shutdown;
    kill(getpid(), SIGHUP);
    EXPECT_FALSE(shutdown.IsPending());
    EXPECT_EQ(shutdown.WaitFor(0), 0);
  }
  {
    ShutdownSignal shutdown(ShutdownSignal::Hangup::kDoesNotStop);
    kill(getpid(), SIGHUP);
    EXPECT_EQ(shutdown.WaitFor(0), SIGHUP) << "a router that runs under nohup is told to reload";
  }
  std::signal(SIGHUP, SIG_DFL);
}

TEST(ShutdownSignal, WakesAWaiterWhicheverThreadRaisesIt) {
  ShutdownSignal shutdown;
  std::jthread other([] { kill(getpid(), SIGTERM); });
  EXPECT_EQ(shutdown.Wait(), SIGTERM);
}

TEST(ShutdownSignal, PollEndsTheWait) {
  ShutdownSignal shutdown;
  int calls = 0;
  EXPECT_EQ(shutdown.Wait(0.001, [&] { return ++calls == 3; }), 0);
  EXPECT_EQ(calls, 3);
}

TEST(ShutdownSignal, ASecondSignalDoesNotKillTheProcessAtItsEnd) {
  {
    ShutdownSignal shutdown;
    kill(getpid(), SIGINT);
    kill(getpid(), SIGTERM);
    EXPECT_EQ(shutdown.Wait(), SIGINT);
  }
  sigset_t blocked;
  pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
  EXPECT_FALSE(sigismember(&blocked, SIGINT));
}

TEST(ShutdownSignal, ABrokenPipeIsNotFatal) {
  ShutdownSignal shutdown;
  raise(SIGPIPE);
}

TEST(AwaitDrained, EndsWhenAllIsDoneOrTheTimeIsUpOrASignalComes) {
  ShutdownSignal shutdown;
  int calls = 0;
  AwaitDrained(
      shutdown, [&] { return ++calls == 3; }, /*limit_seconds=*/1e6);
  EXPECT_EQ(calls, 3);
  AwaitDrained(
      shutdown, [] { return false; }, /*limit_seconds=*/0);
  kill(getpid(), SIGINT);
  AwaitDrained(
      shutdown, [] { return false; }, /*limit_seconds=*/1e6);
  EXPECT_EQ(shutdown.WaitFor(0), 0);
}

}  // namespace
}  // namespace terrace
