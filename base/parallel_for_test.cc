#include "base/parallel_for.h"

#include <atomic>

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

}  // namespace
}  // namespace terrace
