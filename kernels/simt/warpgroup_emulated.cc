#include "kernels/simt/warpgroup_emulated.h"

#include <cmath>
#include <cstring>
#include <string>

#include "kernels/scalar_convert.h"
#include "kernels/simt/simt_machine.h"

namespace terrace::simt {
namespace {

constexpr uint32_t kRows = 64, kSteps = 16;  // of a product: rows of a, elements of k

// As simt_emulated.cc's Together, of the 128 threads of a warpgroup.
void TogetherOfGroup(const char* what, void* mine, void (*operation)(Warpgroup&)) {
  const size_t thread = machine->current;
  if (thread / kGroupThreads >= machine->warpgroups.size()) Fail("no whole warpgroup");
  Warpgroup& group = machine->warpgroups[thread / kGroupThreads];
  if (group.arrived > 0 && std::strcmp(group.what, what) != 0) {
    Fail("thread " + std::to_string(thread) + " calls " + what + ", others of its warpgroup " + group.what);
  }
  group.what = what;
  group.operands[thread % kGroupThreads] = mine;
  if (++group.arrived < kGroupThreads) return Sleep(what);
  operation(group);
  group.arrived = 0;
  const size_t first = thread / kGroupThreads * kGroupThreads;
  for (size_t i = first; i < first + kGroupThreads; ++i) machine->fibers[i]->waits_for = nullptr;
}

struct Tile {
  uint32_t start, leading, stride;
};
Tile Decode(uint64_t tile) {
  if (tile >> 62 != 1) Fail("a tile that SharedTile did not make");
  return {.start = static_cast<uint32_t>(tile & 0x3fff) << 4,
          .leading = static_cast<uint32_t>(tile >> 16 & 0x3fff) << 4,
          .stride = static_cast<uint32_t>(tile >> 32 & 0x3fff) << 4};
}

float ElementAt(uint32_t byte) {
  byte ^= (byte >> 7 & 7) << 4;
  if (byte + 2 > machine->shared_bytes) Fail("a tile beyond shared memory");
  uint16_t bits;
  std::memcpy(&bits, machine->shared + byte, 2);
  return FloatFromBF16(bits);
}
// Element `k` of row `row`, and of column `column` where rows are of k.
float Element(const Tile& tile, uint32_t row, uint32_t k) {
  return ElementAt(tile.start + row / 8 * tile.stride + row % 8 * 128 + k * 2);
}
float ElementTransposed(const Tile& tile, uint32_t column, uint32_t k) {
  return ElementAt(tile.start + column / 64 * tile.leading + column % 64 * 2 + k / 8 * tile.stride +
                   k % 8 * 128);
}

void Multiply(Warpgroup& group, const Product& product) {
  float a[kRows][kSteps];
  const Tile b_tile = Decode(product.b_tile);
  for (uint32_t row = 0; row < kRows; ++row) {
    for (uint32_t k = 0; k < kSteps; ++k) {
      if (!product.has_fragments) {
        a[row][k] = Element(Decode(product.a_tile), row, k);
        continue;
      }
      const uint32_t thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2;
      const uint32_t pair = product.a[thread][row / 8 % 2 + k / 8 * 2];
      a[row][k] = FloatFromBF16(static_cast<uint16_t>(pair >> (k % 2 * 16)));
    }
  }
  for (uint32_t column = 0; column < product.n; ++column) {
    float b[kSteps];
    for (uint32_t k = 0; k < kSteps; ++k) {
      b[k] = product.transposes ? ElementTransposed(b_tile, column, k) : Element(b_tile, column, k);
    }
    for (uint32_t row = 0; row < kRows; ++row) {
      const uint32_t thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
      const uint32_t at = column / 8 * 4 + row / 8 % 2 * 2 + column % 2;
      float& d = group.accumulators.at(product.d[thread]).values[at];
      double sum = product.adds ? d : 0;
      for (uint32_t k = 0; k < kSteps; ++k) sum += double{a[row][k]} * b[k];
      d = static_cast<float>(sum);
    }
  }
}

void Finish(Warpgroup& group, const Product& product) {
  Multiply(group, product);
  for (float* d : product.d) {
    const auto found = group.accumulators.find(d);
    if (--found->second.products > 0) continue;
    for (size_t i = 0; i < found->second.values.size(); ++i) {
      if (!std::isnan(d[i])) Fail("an accumulator was written while its product was under way");
      d[i] = found->second.values[i];
    }
    group.accumulators.erase(found);
  }
}

// What is left of a barrier's phase when all have arrived; true when that ends it.
bool Settle(Barrier& barrier) {
  if (barrier.left > 0) return false;
  for (const Copy& copy : barrier.copies) {
    Perform(copy);
    barrier.bytes -= static_cast<int64_t>(copy.bytes);
  }
  barrier.copies.clear();
  if (barrier.bytes != 0) return false;
  ++barrier.phase;
  barrier.left = barrier.count;
  return true;
}

Barrier& BarrierAt(const uint64_t* barrier) {
  const auto found = machine->barriers.find(barrier);
  if (found == machine->barriers.end()) Fail("a barrier that was not initialized");
  return found->second;
}

// They look again whether their phase is over.
void WakeWaiting() {
  for (auto& fiber : machine->fibers) {
    if (fiber->waits_for != nullptr && std::strcmp(fiber->waits_for, "BarrierWait") == 0) {
      fiber->waits_for = nullptr;
    }
  }
}

void Arrive(Barrier& barrier) {
  if (barrier.left == 0 && !Settle(barrier)) Fail("more arrivals at a barrier than it counts");
  if (--barrier.left == 0) WakeWaiting();
}

bool ArriveNamed(uint32_t id, uint32_t threads) {
  if (id == 0 || id > 15 || threads % kLanes != 0) Fail("barrier " + std::to_string(id));
  if (++machine->named[id] < threads) return false;
  machine->named[id] = 0;
  for (auto& fiber : machine->fibers) {
    if (fiber->waits_at == id) fiber->waits_at = 0, fiber->waits_for = nullptr;
  }
  return true;
}

}  // namespace

uint64_t SharedTile(const void* shared, uint32_t stride, uint32_t leading) {
  const auto start = static_cast<size_t>(static_cast<const std::byte*>(shared) - machine->shared);
  if (reinterpret_cast<uintptr_t>(machine->shared) % 1024 != 0) {
    Fail("the size of shared memory is no multiple of 1024 bytes");
  }
  if (start >= machine->shared_bytes || start % 1024 != 0 || stride % 16 != 0 || leading % 16 != 0) {
    Fail("a tile at byte " + std::to_string(start) + " of shared memory");
  }
  return start >> 4 | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 | uint64_t{1} << 62;
}

void BeginWgmma(const WgmmaOperands& operands) {
  WgmmaOperands mine = operands;
  TogetherOfGroup("Wgmma", &mine, [](Warpgroup& group) {
    const auto& first = *static_cast<const WgmmaOperands*>(group.operands[0]);
    Product product = {.n = first.n,
                       .a_tile = first.a_tile,
                       .b_tile = first.b_tile,
                       .has_fragments = first.a != nullptr,
                       .adds = first.adds,
                       .transposes = first.transposes,
                       .d = {},
                       .a = {}};
    for (size_t i = 0; i < kGroupThreads; ++i) {
      const auto& one = *static_cast<const WgmmaOperands*>(group.operands[i]);
      if (one.n != first.n || one.a_tile != first.a_tile || one.b_tile != first.b_tile ||
          one.adds != first.adds) {
        Fail("threads of a warpgroup disagree about a product");
      }
      product.d[i] = one.d;
      if (one.a != nullptr) std::memcpy(product.a[i], one.a, sizeof(product.a[i]));
      Accumulator& accumulator = group.accumulators[one.d];
      if (accumulator.products++ == 0) {
        accumulator.values.assign(one.d, one.d + one.n / 2);
        for (uint32_t e = 0; e < one.n / 2; ++e) one.d[e] = NAN;
      }
    }
    group.open.push_back(product);
  });
}
void WgmmaCommit() {
  TogetherOfGroup("WgmmaCommit", nullptr,
                  [](Warpgroup& group) { group.committed.push_back(std::exchange(group.open, {})); });
}
void WgmmaWaitFor(int groups) {
  TogetherOfGroup("WgmmaWait", &groups, [](Warpgroup& group) {
    const auto most = static_cast<size_t>(*static_cast<const int*>(group.operands[0]));
    while (group.committed.size() > most) {
      for (const Product& product : group.committed.front()) Finish(group, product);
      group.committed.erase(group.committed.begin());
    }
  });
}

void BarrierInit(uint64_t* barrier, uint32_t count) {
  machine->barriers[barrier] = {.count = count, .left = count, .phase = 0, .bytes = 0, .copies = {}};
}
void BarrierArrive(uint64_t* barrier) { Arrive(BarrierAt(barrier)); }
void BarrierExpect(uint64_t* barrier, uint32_t bytes) {
  Barrier& at = BarrierAt(barrier);
  if (at.left == 0 && !Settle(at)) Fail("more arrivals at a barrier than it counts");
  at.bytes += bytes;
  Arrive(at);
}
void BarrierWait(uint64_t* barrier, uint32_t parity) {
  Barrier& at = BarrierAt(barrier);
  while ((at.phase & 1) == parity && !Settle(at)) Sleep("BarrierWait");
}
void BulkCopy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0 ||
      bytes % 16 != 0) {
    Fail("BulkCopy of what is not aligned to 16 bytes");
  }
  BarrierAt(barrier).copies.push_back({shared, global, bytes, true});
  WakeWaiting();
}
void CpAsync4(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 4 != 0 || reinterpret_cast<uintptr_t>(global) % 4 != 0) {
    Fail("CpAsync4 at an address that is not aligned to 4 bytes");
  }
  Current().copies.push_back({shared, global, 4, valid});
}

void SyncSome(uint32_t id, uint32_t threads) {
  Fiber& mine = Current();
  mine.waits_at = id;
  if (ArriveNamed(id, threads)) return;
  Sleep("SyncSome");
}
void ArriveSome(uint32_t id, uint32_t threads) { ArriveNamed(id, threads); }

}  // namespace terrace::simt
