// The emulator: what device code is tested with is tested first.
#include "kernels/simt/simt.h"

#include <cstring>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(Simt, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> seen(3 * 2 * 64);
  simt::RunBody({3, 2, 1}, 64, 0,
                [&] { ++seen[(blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x]; });
  for (const int times : seen) EXPECT_EQ(times, 1);
}

TEST(Simt, ABarrierOrdersWhatThreadsWrite) {
  for (const uint64_t seed : {0, 1, 2}) {
    std::vector<uint32_t> out(128);
    simt::RunBody({}, 128, 128 * sizeof(uint32_t),
                  [&] {
                    auto* shared = reinterpret_cast<uint32_t*>(simt::DynamicShared());
                    shared[threadIdx.x] = threadIdx.x;
                    simt::SyncThreads();
                    out[threadIdx.x] = shared[127 - threadIdx.x];
                  },
                  {.seed = seed});
    for (uint32_t i = 0; i < 128; ++i) EXPECT_EQ(out[i], 127 - i) << "seed " << seed;
  }
}

TEST(Simt, ShufflesAndSums) {
  simt::RunBody({}, 64, 0, [&] {
    EXPECT_EQ(simt::ShuffleXor(simt::Lane(), 5), simt::Lane() ^ 5);
    EXPECT_EQ(simt::Shuffle(simt::Lane(), 7), 7u);
    EXPECT_EQ(simt::WarpSum(static_cast<float>(simt::Lane())), 496);
    EXPECT_EQ(simt::Ballot(simt::Lane() % 2 == 0), 0x55555555u);
  });
}

// A and B by the table of simt.h, C by the definition.
TEST(Simt, MmaMultiplies) {
  float a[16][16], b[16][8];
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) a[i][k] = static_cast<float>((7 * i + 3 * k) % 11 - 5);
    for (int j = 0; j < 8; ++j) b[i][j] = static_cast<float>((5 * i + 2 * j) % 13 - 6);
  }
  simt::RunBody({}, 32, 0, [&] {
    const uint32_t g = simt::Lane() / 4, t = simt::Lane() % 4;
    const uint32_t fragment_a[4] = {simt::PackBF16(a[g][2 * t], a[g][2 * t + 1]),
                                    simt::PackBF16(a[g + 8][2 * t], a[g + 8][2 * t + 1]),
                                    simt::PackBF16(a[g][2 * t + 8], a[g][2 * t + 9]),
                                    simt::PackBF16(a[g + 8][2 * t + 8], a[g + 8][2 * t + 9])};
    const uint32_t fragment_b[2] = {simt::PackBF16(b[2 * t][g], b[2 * t + 1][g]),
                                    simt::PackBF16(b[2 * t + 8][g], b[2 * t + 9][g])};
    float c[4] = {1, 2, 3, 4};
    simt::MmaBF16(c, fragment_a, fragment_b);
    for (uint32_t i = 0; i < 4; ++i) {
      float expected = static_cast<float>(i + 1);
      for (int k = 0; k < 16; ++k) expected += a[g + 8 * (i / 2)][k] * b[k][2 * t + i % 2];
      EXPECT_EQ(c[i], expected);
    }
  });
}

TEST(Simt, Int8MmaMultiplies) {
  int a[16][32], b[32][8];
  for (int k = 0; k < 32; ++k) {
    for (int i = 0; i < 16; ++i) a[i][k] = (37 * i + 11 * k) % 256 - 128;
    for (int j = 0; j < 8; ++j) b[k][j] = (29 * k + 53 * j) % 256 - 128;
  }
  simt::RunBody({}, 32, 0, [&] {
    const uint32_t g = simt::Lane() / 4, t = simt::Lane() % 4;
    uint32_t fragment_a[4] = {}, fragment_b[2] = {};
    for (uint32_t e = 0; e < 4; ++e) {
      const auto put = [e](uint32_t& word, int value) {
        word |= uint32_t{static_cast<uint8_t>(value)} << (8 * e);
      };
      for (uint32_t i = 0; i < 4; ++i) put(fragment_a[i], a[g + i % 2 * 8][4 * t + i / 2 * 16 + e]);
      for (uint32_t i = 0; i < 2; ++i) put(fragment_b[i], b[4 * t + 16 * i + e][g]);
    }
    int32_t c[4] = {1, -2, 3, -4};
    simt::MmaS8(c, fragment_a, fragment_b);
    for (uint32_t i = 0; i < 4; ++i) {
      int32_t expected = i % 2 == 0 ? static_cast<int32_t>(i) + 1 : -static_cast<int32_t>(i) - 1;
      for (int k = 0; k < 32; ++k) expected += a[g + 8 * (i / 2)][k] * b[k][2 * t + i % 2];
      EXPECT_EQ(c[i], expected);
    }
  });
}

// The same of A that keeps two of each four, each row and four at places of their own.
TEST(Simt, SparseMmaMultiplies) {
  constexpr int kPlaces[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
  float a[16][32] = {}, b[32][8];
  const auto places_of = [&](uint32_t row, uint32_t four) { return kPlaces[(5 * row + four) % 6]; };
  for (uint32_t i = 0; i < 16; ++i) {
    for (uint32_t four = 0; four < 8; ++four) {
      a[i][4 * four + static_cast<uint32_t>(places_of(i, four)[0])] =
          static_cast<float>((7 * i + four) % 11) - 5;
      a[i][4 * four + static_cast<uint32_t>(places_of(i, four)[1])] =
          static_cast<float>((3 * i + four) % 13) - 6;
    }
  }
  for (int k = 0; k < 32; ++k) {
    for (int j = 0; j < 8; ++j) b[k][j] = static_cast<float>((5 * k + 2 * j) % 13 - 6);
  }
  const auto test = [&]<uint32_t kSelector>() {
    simt::RunBody({}, 32, 0, [&] {
      const uint32_t g = simt::Lane() / 4, t = simt::Lane() % 4;
      const auto kept = [&](uint32_t row, uint32_t four) {
        const auto& places = places_of(row, four);
        return simt::PackBF16(a[row][4 * four + static_cast<uint32_t>(places[0])],
                              a[row][4 * four + static_cast<uint32_t>(places[1])]);
      };
      const uint32_t fragment_a[4] = {kept(g, t), kept(g + 8, t), kept(g, t + 4), kept(g + 8, t + 4)};
      uint32_t fragment_b[4], places = 0xffffffff;  // which nobody may look at
      for (uint32_t i = 0; i < 4; ++i)
        fragment_b[i] = simt::PackBF16(b[8 * i + 2 * t][g], b[8 * i + 2 * t + 1][g]);
      if (t / 2 == kSelector) {
        places = 0;
        for (uint32_t i = 0; i < 8; ++i) {
          const auto& of = places_of(g + i / 4 * 8, t % 2 * 4 + i % 4);
          places |= static_cast<uint32_t>(of[0] | of[1] << 2) << 4 * i;
        }
      }
      float c[4] = {1, 2, 3, 4};
      simt::MmaSparseBF16<kSelector>(c, fragment_a, fragment_b, places);
      for (uint32_t i = 0; i < 4; ++i) {
        float expected = static_cast<float>(i + 1);
        for (int k = 0; k < 32; ++k) expected += a[g + 8 * (i / 2)][k] * b[k][2 * t + i % 2];
        EXPECT_EQ(c[i], expected);
      }
    });
  };
  test.template operator()<0>();
  test.template operator()<1>();
}

TEST(Simt, LdMatrixGivesFragments) {
  simt::RunBody({}, 32, 4 * 8 * 16, [&] {
    auto* shared = reinterpret_cast<uint16_t*>(simt::DynamicShared());
    const uint32_t lane = simt::Lane();
    for (uint16_t e = 0; e < 8; ++e) shared[lane * 8 + e] = static_cast<uint16_t>(lane * 8 + e);
    simt::SyncWarp();
    uint32_t plain[4], transposed[4];
    simt::LdMatrix4(plain, shared + lane * 8);
    simt::LdMatrix4Trans(transposed, shared + lane * 8);
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t i = 0; i < 4; ++i) {
      EXPECT_EQ(plain[i], (i * 64 + g * 8 + 2 * t) | (i * 64 + g * 8 + 2 * t + 1) << 16);
      EXPECT_EQ(transposed[i], (i * 64 + 2 * t * 8 + g) | (i * 64 + (2 * t + 1) * 8 + g) << 16);
    }
  });
}

TEST(Simt, AnAsynchronousCopyComesWhenItIsWaitedFor) {
  alignas(16) const uint32_t from[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  simt::RunBody({}, 32, 32, [&] {
    auto* shared = reinterpret_cast<uint32_t*>(simt::DynamicShared());
    if (threadIdx.x != 0) return;
    simt::CpAsync16(shared, from, true);
    simt::CpAsyncCommit();
    simt::CpAsync16(shared + 4, from + 4, false);
    simt::CpAsyncCommit();
    EXPECT_EQ(shared[0], 0xffffffffu);
    simt::CpAsyncWait<1>();
    EXPECT_EQ(shared[0], 1u);
    EXPECT_EQ(shared[4], 0xffffffffu);
    simt::CpAsyncWait<0>();
    EXPECT_EQ(shared[4], 0u);
  });
}

TEST(SimtDeathTest, WhatWouldHangEnds) {
  EXPECT_DEATH(simt::RunBody({}, 64, 0,
                             [] {
                               if (threadIdx.x < 32) simt::SyncThreads();
                             }),
               "can go on");
  EXPECT_DEATH(simt::RunBody({}, 32, 0,
                             [] {
                               if (threadIdx.x < 16) simt::SyncWarp();
                             }),
               "can go on");
}

// A device does what it likes with these.
TEST(SimtDeathTest, PlacesThatDoNotRiseEnd) {
  for (const uint32_t places : {0x00000000u, 0x44444445u, 0x44444441u}) {
    EXPECT_DEATH(simt::RunBody({}, 32, 0,
                               [&] {
                                 const uint32_t a[4] = {}, b[4] = {};
                                 float c[4] = {};
                                 simt::MmaSparseBF16<0>(c, a, b, places);
                               }),
                 "do not rise");
  }
}

TEST(SimtDeathTest, SharedMemoryEndsWhereItEnds) {
  EXPECT_DEATH(simt::RunBody({}, 32, 128, [] { simt::DynamicShared()[128] = std::byte{1}; }), "");
}

// 1.5 (1 + 2^-7) is half way between two bf16; an f32 in between would lose what leads off it.
TEST(Simt, AnFmaOfBF16RoundsOnce) {
  const auto fma = [](float c) {
    return simt::FmaBF16x2(simt::PackBF16(1.5f, -1.5f), simt::PackBF16(1.0078125f, 1.0078125f),
                           simt::PackBF16(c, -c));
  };
  EXPECT_EQ(simt::BF16Low(fma(0)), 1.515625f);  // to even
  EXPECT_EQ(simt::BF16Low(fma(0x1p-30f)), 1.515625f);
  EXPECT_EQ(simt::BF16Low(fma(-0x1p-30f)), 1.5078125f);
  EXPECT_EQ(simt::BF16High(fma(-0x1p-30f)), -1.5078125f);
}

TEST(Simt, BytePermutes) {
  EXPECT_EQ(simt::BytePermute(0x33221100, 0x77665544, 0x5410), 0x55441100u);
  EXPECT_EQ(simt::BytePermute(0x33221100, 0x77665544, 0x7632), 0x77663322u);
}

}  // namespace
}  // namespace terrace
