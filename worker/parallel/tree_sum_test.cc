#include "worker/parallel/tree_sum.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using Parts = std::vector<std::vector<float>>;

// Of many magnitudes, so that another order of adding shows.
Parts RandomParts(size_t parts, size_t count, uint64_t seed) {
  Parts out(parts, std::vector<float>(count));
  for (size_t part = 0; part < parts; ++part) {
    for (size_t i = 0; i < count; ++i) {
      const auto magnitude = static_cast<float>(std::exp2(8 * RandomUniform(seed, i, 2 * part)));
      out[part][i] = magnitude * static_cast<float>(RandomUniform(seed, i, 2 * part + 1) - 0.5);
    }
  }
  return out;
}

std::vector<float> Sum(Parts parts, size_t begin, size_t end) {
  std::vector<float*> memory;
  for (auto& part : parts) memory.push_back(part.data());
  AddTree(memory, begin, end);
  return parts[0];
}

TEST(AddTree, IsATreeOverNeighbours) {
  const size_t count = 100;
  const Parts p = RandomParts(4, count, /*seed=*/1);
  const auto got = Sum(p, 0, count);
  size_t other_order = 0;
  for (size_t i = 0; i < count; ++i) {
    EXPECT_EQ(got[i], (p[0][i] + p[1][i]) + (p[2][i] + p[3][i]));
    other_order += got[i] != ((p[0][i] + p[1][i]) + p[2][i]) + p[3][i] ? 1 : 0;
  }
  EXPECT_GT(other_order, 0u) << "the parts do not tell one order from another";
}

TEST(AddTree, RunsOfPartsAddedApartGiveTheBitsOfAll) {
  const size_t count = 1000, parts = 16;
  const Parts all = RandomParts(parts, count, /*seed=*/2);
  const auto want = Sum(all, 0, count);
  for (const size_t runs : {1, 2, 4, 8, 16}) {
    Parts sums;
    for (size_t run = 0; run < runs; ++run) {
      const auto begin = all.begin() + static_cast<ptrdiff_t>(run * parts / runs);
      sums.push_back(Sum({begin, begin + static_cast<ptrdiff_t>(parts / runs)}, 0, count));
    }
    EXPECT_EQ(Sum(sums, 0, count), want) << runs << " runs";
  }
}

TEST(AddTree, AnyNumberOfPartsAndAnyElementsOfThem) {
  for (const size_t parts : {1, 2, 3, 5, 6, 7}) {
    const Parts all = RandomParts(parts, 10, /*seed=*/parts);
    const auto got = Sum(all, 2, 7);
    for (size_t i = 0; i < 10; ++i) {
      double want = 0;
      for (const auto& part : all) want += double{part[i]};
      if (i < 2 || i >= 7) {
        EXPECT_EQ(got[i], all[0][i]) << "outside";
      } else {
        EXPECT_NEAR(got[i], want, 1e-3);
      }
    }
  }
}

}  // namespace
}  // namespace terrace
