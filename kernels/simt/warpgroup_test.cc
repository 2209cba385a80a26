// The emulator of warpgroup.h against the definitions.
#include "kernels/simt/warpgroup.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

float ValueOfA(uint32_t row, uint32_t k) { return static_cast<float>((7 * row + 3 * k) % 11) - 5; }
float ValueOfB(uint32_t k, uint32_t column) { return static_cast<float>((5 * k + 2 * column) % 13) - 6; }

void Put(std::byte* tile, uint32_t row, uint32_t element, float value) {
  auto* const at = tile + simt::SwizzledByte(row, element / 8) + element % 8 * 2;
  *reinterpret_cast<uint16_t*>(at) = BF16FromFloat(value);
}

// a, b and the sums of 64 elements of k, in four steps. `of_registers`: where a is; `transposed`: how b lies.
void CheckProduct(bool of_registers, bool transposed) {
  constexpr uint32_t kN = 128, kDepth = 64;
  simt::RunBody({}, 128, 32768, [&] {
    std::byte* const a = simt::DynamicShared();
    std::byte* const b = a + 64 * 128;
    const uint32_t thread = threadIdx.x, lane = simt::Lane(), warp = simt::WarpIndex();
    for (uint32_t k = 0; k < kDepth; ++k) {
      if (thread < 64) Put(a, thread, k, ValueOfA(thread, k));
      if (transposed) {
        Put(b + thread / 64 * (kDepth * 128), k, thread % 64, ValueOfB(k, thread));
      } else {
        Put(b, thread, k, ValueOfB(k, thread));
      }
    }
    simt::FenceAsyncShared();
    simt::SyncThreads();
    float d[kN / 2];
    for (float& each : d) each = 1;
    simt::WgmmaFence();
    for (uint32_t step = 0; step < kDepth / 16; ++step) {
      const uint64_t a_tile = simt::TileAt(simt::SharedTile(a, 1024), 32 * step);
      const uint64_t b_tile = transposed ? simt::TileAt(simt::SharedTile(b, 1024, kDepth * 128), 2048 * step)
                                         : simt::TileAt(simt::SharedTile(b, 1024), 32 * step);
      uint32_t fragment[4];
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = 16 * warp + lane / 4 + i % 2 * 8, k = 16 * step + lane % 4 * 2 + i / 2 * 8;
        fragment[i] = simt::PackBF16(ValueOfA(row, k), ValueOfA(row, k + 1));
      }
      if (of_registers && transposed) simt::WgmmaTransposed<kN>(d, fragment, b_tile, true);
      if (of_registers && !transposed) simt::Wgmma<kN>(d, fragment, b_tile, true);
      if (!of_registers && transposed) simt::WgmmaTransposed<kN>(d, a_tile, b_tile, true);
      if (!of_registers && !transposed) simt::Wgmma<kN>(d, a_tile, b_tile, true);
    }
    simt::WgmmaCommit();
    EXPECT_TRUE(std::isnan(d[0]));
    simt::WgmmaWait<0>();
    for (uint32_t i = 0; i < kN / 2; ++i) {
      const uint32_t row = 16 * warp + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float expected = 1;
      for (uint32_t k = 0; k < kDepth; ++k) expected += ValueOfA(row, k) * ValueOfB(k, column);
      EXPECT_EQ(d[i], expected) << row << " " << column;
    }
  });
}

TEST(Warpgroup, MultipliesFragmentsAndTiles) { CheckProduct(true, false), CheckProduct(false, false); }
TEST(Warpgroup, MultipliesTransposedTiles) { CheckProduct(true, true), CheckProduct(false, true); }

TEST(Warpgroup, AGroupIsUnderWayUntilItIsWaitedFor) {
  simt::RunBody({}, 128, 2048, [&] {
    std::byte* const b = simt::DynamicShared();
    for (uint32_t k = 0; k < 64 && threadIdx.x < 8; ++k) Put(b, threadIdx.x, k, 1);
    simt::SyncThreads();
    const uint32_t ones[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    float first[4] = {}, second[4] = {};
    simt::Wgmma<8>(first, ones, simt::SharedTile(b, 1024), false);
    simt::WgmmaCommit();
    simt::Wgmma<8>(second, ones, simt::SharedTile(b, 1024), false);
    simt::WgmmaCommit();
    simt::WgmmaWait<1>();
    EXPECT_EQ(first[0], 16);
    EXPECT_TRUE(std::isnan(second[0]));
    simt::WgmmaWait<0>();
    EXPECT_EQ(second[3], 16);
  });
}

// A ring of two stages: one thread brings, the others take.
TEST(Warpgroup, BarriersPassStagesOn) {
  constexpr uint32_t kStages = 2, kRounds = 7;
  std::vector<uint32_t> from(kRounds * 4);
  for (uint32_t i = 0; i < from.size(); ++i) from[i] = i + 1;
  for (const uint64_t seed : {0, 1, 2, 3}) {
    simt::RunBody({}, 160, 1024,
                  [&] {
                    auto* const stages = reinterpret_cast<uint32_t*>(simt::DynamicShared());
                    auto* const full = reinterpret_cast<uint64_t*>(simt::DynamicShared() + 512);
                    uint64_t* const empty = full + kStages;
                    if (threadIdx.x == 0) {
                      for (uint32_t i = 0; i < kStages; ++i) {
                        simt::BarrierInit(full + i, 1), simt::BarrierInit(empty + i, 128);
                      }
                      simt::BarrierInitDone();
                    }
                    simt::SyncThreads();
                    for (uint32_t round = 0; round < kRounds; ++round) {
                      const uint32_t stage = round % kStages, parity = round / kStages % 2;
                      if (threadIdx.x == 128) {
                        simt::BarrierWait(empty + stage, parity ^ 1);
                        simt::BarrierExpect(full + stage, 16);
                        simt::BulkCopy(stages + stage * 4, from.data() + round * 4, 16, full + stage);
                      } else if (threadIdx.x < 128) {
                        simt::BarrierWait(full + stage, parity);
                        EXPECT_EQ(stages[stage * 4 + 3], round * 4 + 4) << "seed " << seed;
                        simt::BarrierArrive(empty + stage);
                      }
                    }
                  },
                  {.seed = seed});
  }
}

TEST(Warpgroup, NamedBarriersOrderSomeThreads) {
  for (const uint64_t seed : {0, 1, 2}) {
    simt::RunBody({}, 96, 128,
                  [&] {
                    auto* const shared = reinterpret_cast<uint32_t*>(simt::DynamicShared());
                    if (threadIdx.x < 32) {
                      if (threadIdx.x == 0) shared[0] = 5;
                      simt::ArriveSome(3, 64);
                    } else if (threadIdx.x < 64) {
                      simt::SyncSome(3, 64);
                      EXPECT_EQ(shared[0], 5u) << "seed " << seed;
                    }
                  },
                  {.seed = seed});
  }
}

TEST(WarpgroupDeathTest, WhatWouldBeWrongOnADeviceEnds) {
  const auto multiply = [](auto between) {
    simt::RunBody({}, 128, 1024, [&] {
      const uint32_t a[4] = {};
      float d[4] = {};
      simt::Wgmma<8>(d, a, simt::SharedTile(simt::DynamicShared(), 1024), false);
      simt::WgmmaCommit();
      between(d);
      simt::WgmmaWait<0>();
    });
  };
  EXPECT_DEATH(multiply([](float(&d)[4]) { d[0] = 1; }), "was written while");
  EXPECT_DEATH(multiply([](float(&)[4]) { simt::SharedTile(simt::DynamicShared() + 16, 1024); }),
               "a tile at byte 16");
  EXPECT_DEATH(simt::RunBody({}, 64, 0, [] { simt::SyncSome(1, 96); }), "SyncSome");
}

}  // namespace
}  // namespace terrace
