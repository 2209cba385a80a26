#include "base/parallel_for.h"

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/rng.h"
#include "base/status.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ParallelFor, VisitsEachIndexOnceInGrainsForAnyThreadCount) {
  for (size_t threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (size_t count : {0, 1, 7, 8, 64, 1000}) {
      for (size_t grain : {1, 8, 100}) {
        std::vector<std::atomic<int>> visits(count);
        pool.ParallelFor(count, grain, [&](size_t begin, size_t end) {
          EXPECT_EQ(begin % grain, 0u);
          for (size_t i = begin; i < end; ++i) ++visits[i];
        });
        for (size_t i = 0; i < count; ++i) EXPECT_EQ(visits[i], 1) << threads << " " << count << " " << grain;
      }
    }
  }
}

// Who is done first spins for a while and then sleeps: both ends of both waits are taken here.
TEST(ParallelFor, LosesNoCallHoweverLongEitherSideKeepsTheOtherWaiting) {
  const uint64_t seed = 7;
  SCOPED_TRACE(Concat("seed ", seed));
  uint64_t draw = 0;
  const auto below = [&](size_t bound) { return RandomBits(seed, draw++) % bound; };
  for (size_t threads : {2, 3}) {
    ThreadPool pool(threads);
    std::atomic<size_t> work = 0;
    const auto busy = [&work](size_t turns) {
      for (size_t i = 0; i < turns; ++i) ++work;
    };
    for (size_t call = 0; call < 2000; ++call) {
      std::vector<size_t> turns(threads);
      for (size_t& part : turns) part = below(4) == 0 ? below(40000) : below(20);
      std::vector<size_t> visits(threads);
      pool.ParallelFor(threads, 1, [&](size_t begin, size_t end) {
        for (size_t part = begin; part < end; ++part) {
          busy(turns[part]);
          ++visits[part];
        }
      });
      ASSERT_EQ(visits, std::vector<size_t>(threads, 1))
          << "call " << call << " of " << threads << " threads";
      if (below(4) == 0) busy(below(40000));
    }
  }
}

// The other threads of a pool, while the caller is busy in a slice of its own.
TEST(ThreadPool, PinsItsThreadsToProcessorsOfTheirOwn) {
  cpu_set_t all;
  ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
  const auto processors = static_cast<size_t>(CPU_COUNT(&all));
  if (processors < 2) GTEST_SKIP() << "needs two processors";
  ThreadPool pool(2, /*pin=*/true);
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<bool> is_seen = false;
  cpu_set_t seen;
  pool.ParallelFor(2, 1, [&](size_t, size_t) {
    if (std::this_thread::get_id() == caller) {
      while (!is_seen) std::this_thread::yield();
    } else if (!is_seen) {
      EXPECT_EQ(sched_getaffinity(0, sizeof(seen), &seen), 0);
      is_seen = true;
    }
  });
  EXPECT_EQ(CPU_COUNT(&seen), 1);
  cpu_set_t both;
  CPU_AND(&both, &seen, &all);
  EXPECT_TRUE(CPU_EQUAL(&both, &seen));
  cpu_set_t after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&after, &all));  // the caller's is as it was
}

}  // namespace
}  // namespace terrace
