#include "kernels/simt/simt_emulated.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/scalar_convert.h"
#include "kernels/simt/simt_machine.h"

namespace terrace::simt {

Machine* machine = nullptr;

Fiber& Current() { return *machine->fibers[machine->current]; }

void Sleep(const char* what) {
  Fiber& fiber = Current();
  fiber.waits_for = what;
  swapcontext(&fiber.context, &machine->scheduler);
}

void Fail(const std::string& message) {
  std::fprintf(stderr, "simt: %s\n", message.c_str());
  std::abort();
}

void Perform(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, copy.bytes);
  } else {
    std::memset(copy.to, 0, copy.bytes);
  }
}

namespace {

constexpr size_t kStackBytes = size_t{256} << 10;

void ReleaseBarrier() {
  for (auto& fiber : machine->fibers) {
    if (fiber->waits_for != nullptr && std::strcmp(fiber->waits_for, "SyncThreads") == 0) {
      fiber->waits_for = nullptr;
    }
  }
  machine->at_barrier = 0;
}

[[noreturn]] void Deadlock() {
  std::fprintf(stderr, "simt: no thread of block %u,%u,%u can go on:\n", machine->place.block.x,
               machine->place.block.y, machine->place.block.z);
  for (size_t i = 0; i < machine->fibers.size(); ++i) {
    const Fiber& fiber = *machine->fibers[i];
    std::fprintf(stderr, "  thread %zu %s\n", i,
                 fiber.is_done                ? "has ended"
                 : fiber.waits_for != nullptr ? fiber.waits_for
                                              : "can go on");
  }
  std::abort();
}

void Begin() {
  (*machine->body)();
  Fiber& fiber = Current();
  fiber.is_done = true;
  ++machine->done;
  swapcontext(&fiber.context, &machine->scheduler);
}

void RunBlock(std::mt19937_64* random) {
  Machine& m = *machine;
  const size_t threads = m.place.threads.x;
  m.warps.assign(threads / kLanes, {});
  m.warpgroups.assign(threads / kGroupThreads, {});
  m.barriers.clear();
  m.named.clear();
  m.at_barrier = m.done = 0;
  for (size_t i = 0; i < threads; ++i) {
    Fiber& fiber = *m.fibers[i];
    fiber.is_done = false;
    fiber.waits_for = nullptr;
    fiber.committed.clear();
    fiber.copies.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = m.stacks.data() + i * kStackBytes;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, Begin, 0);
  }
  std::vector<size_t> order(threads);
  std::iota(order.begin(), order.end(), size_t{0});
  while (m.done < threads) {
    if (random != nullptr) std::shuffle(order.begin(), order.end(), *random);
    bool went_on = false;
    for (const size_t i : order) {
      Fiber& fiber = *m.fibers[i];
      if (fiber.is_done || fiber.waits_for != nullptr) continue;
      m.current = i;
      m.place.thread = {static_cast<uint32_t>(i), 0, 0};
      went_on = true;
      swapcontext(&m.scheduler, &fiber.context);
    }
    if (!went_on) Deadlock();
  }
}

float Element(uint32_t pair, size_t half, bool is_bf16) {
  const auto bits = static_cast<uint16_t>(pair >> (16 * half));
  return is_bf16 ? FloatFromBF16(bits) : FloatFromF16(bits);
}

struct MmaOperand {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

template <bool kIsBF16>
void MmaAll(void* const (&all)[32]) {
  float a[16][16], b[16][8];
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const MmaOperand*>(all[lane]);
    const size_t g = lane / 4, t = lane % 4;
    for (size_t i = 0; i < 4; ++i) {
      for (size_t e = 0; e < 2; ++e)
        a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + e] = Element(mine.a[i], e, kIsBF16);
    }
    for (size_t i = 0; i < 2; ++i) {
      for (size_t e = 0; e < 2; ++e) b[2 * t + 8 * i + e][g] = Element(mine.b[i], e, kIsBF16);
    }
  }
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const MmaOperand*>(all[lane]);
    for (size_t i = 0; i < 4; ++i) {
      const size_t row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = mine.c[i];
      for (size_t k = 0; k < 16; ++k) sum += double{a[row][k]} * b[k][column];
      mine.c[i] = static_cast<float>(sum);
    }
  }
}

struct MmaS8Operand {
  int32_t* c;
  const uint32_t* a;
  const uint32_t* b;
};

void MmaS8All(void* const (&all)[32]) {
  int32_t a[16][32], b[32][8];
  const auto element = [](uint32_t word, size_t i) -> int32_t {
    return static_cast<int8_t>(word >> (8 * i));
  };
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const MmaS8Operand*>(all[lane]);
    const size_t g = lane / 4, t = lane % 4;
    for (size_t e = 0; e < 4; ++e) {
      for (size_t i = 0; i < 4; ++i) a[g + 8 * (i % 2)][4 * t + 16 * (i / 2) + e] = element(mine.a[i], e);
      for (size_t i = 0; i < 2; ++i) b[4 * t + 16 * i + e][g] = element(mine.b[i], e);
    }
  }
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const MmaS8Operand*>(all[lane]);
    for (size_t i = 0; i < 4; ++i) {
      const size_t row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      for (size_t k = 0; k < 32; ++k) mine.c[i] += a[row][k] * b[k][column];
    }
  }
}

struct MmaSparseOperand {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
  uint32_t places, selector;
};

void MmaSparseAll(void* const (&all)[32]) {
  float a[16][32] = {}, b[32][8];
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const MmaSparseOperand*>(all[lane]);
    const size_t g = lane / 4, t = lane % 4;
    for (size_t i = 0; i < 4; ++i) {
      const size_t half = i % 2, j = t + 4 * (i / 2), from = 4 * g + 2 * mine.selector + j / 4;
      const uint32_t word = static_cast<const MmaSparseOperand*>(all[from])->places;
      const uint32_t places = word >> (16 * half + 4 * (j % 4)) & 15, first = places & 3,
                     second = places >> 2;
      if (first >= second) Fail("places of MmaSparse that do not rise: " + std::to_string(places));
      a[g + 8 * half][4 * j + first] = Element(mine.a[i], 0, true);
      a[g + 8 * half][4 * j + second] = Element(mine.a[i], 1, true);
      for (size_t e = 0; e < 2; ++e) b[8 * i + 2 * t + e][g] = Element(mine.b[i], e, true);
    }
  }
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const MmaSparseOperand*>(all[lane]);
    for (size_t i = 0; i < 4; ++i) {
      const size_t row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = mine.c[i];
      for (size_t k = 0; k < 32; ++k) sum += double{a[row][k]} * b[k][column];
      mine.c[i] = static_cast<float>(sum);
    }
  }
}

struct LdMatrixOperand {
  uint32_t* r;
  const void* row;
};

// Lane i gives row i % 8 of matrix i / 8 and gets, of each matrix, elements 2t and 2t + 1 of row g (or, of
// the transposed one, of column g).
template <bool kTranspose>
void LdMatrixAll(void* const (&all)[32]) {
  uint16_t matrix[4][8][8];
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const void* row = static_cast<const LdMatrixOperand*>(all[lane])->row;
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
      Fail("LdMatrix of a row that is not aligned to 16 bytes");
    }
    std::memcpy(matrix[lane / 8][lane % 8], row, 16);
  }
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const size_t g = lane / 4, t = lane % 4;
    for (size_t i = 0; i < 4; ++i) {
      const uint32_t low = kTranspose ? matrix[i][2 * t][g] : matrix[i][g][2 * t];
      const uint32_t high = kTranspose ? matrix[i][2 * t + 1][g] : matrix[i][g][2 * t + 1];
      static_cast<const LdMatrixOperand*>(all[lane])->r[i] = low | high << 16;
    }
  }
}

}  // namespace

const Place& Here() { return machine->place; }

void RunBody(Dim3 grid, uint32_t threads, size_t shared_bytes, const std::function<void()>& body,
             Options options) {
  if (threads == 0 || threads % kLanes != 0 || threads > 1024) {
    Fail("blocks of " + std::to_string(threads) + " threads");
  }
  Machine m;
  m.body = &body;
  m.place.grid = grid;
  m.place.threads = {threads, 1, 1};
  m.stacks.resize(threads * kStackBytes);
  for (uint32_t i = 0; i < threads; ++i) m.fibers.push_back(std::make_unique<Fiber>());
  // Ends at a page that cannot be touched.
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t aligned = (shared_bytes + 127) / 128 * 128;
  const size_t mapped = (aligned + page - 1) / page * page;
  auto* memory = static_cast<std::byte*>(
      mmap(nullptr, mapped + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED || mprotect(memory + mapped, page, PROT_NONE) != 0) std::abort();
  m.shared = memory + mapped - aligned;
  m.shared_bytes = aligned;
  std::mt19937_64 random(options.seed);
  Machine* const outer = std::exchange(machine, &m);
  for (m.place.block.z = 0; m.place.block.z < grid.z; ++m.place.block.z) {
    for (m.place.block.y = 0; m.place.block.y < grid.y; ++m.place.block.y) {
      for (m.place.block.x = 0; m.place.block.x < grid.x; ++m.place.block.x) {
        std::memset(m.shared, 0xff, aligned);
        RunBlock(options.seed == 0 ? nullptr : &random);
      }
    }
  }
  machine = outer;
  munmap(memory, mapped + page);
}

void SyncThreads() {
  if (++machine->at_barrier == machine->fibers.size()) return ReleaseBarrier();
  Sleep("SyncThreads");
}

void Together(const char* what, void* mine, void (*operation)(void* const (&operands)[32])) {
  const size_t thread = machine->current;
  Warp& warp = machine->warps[thread / kLanes];
  if (warp.arrived > 0 && std::strcmp(warp.what, what) != 0) {
    Fail("thread " + std::to_string(thread) + " calls " + what + ", others of its warp " + warp.what);
  }
  warp.what = what;
  warp.operands[thread % kLanes] = mine;
  if (++warp.arrived < kLanes) return Sleep(what);
  operation(warp.operands);
  warp.arrived = 0;
  for (size_t i = thread / kLanes * kLanes; i < (thread / kLanes + 1) * kLanes; ++i) {
    machine->fibers[i]->waits_for = nullptr;
  }
}

void SyncWarp() {
  Together("SyncWarp", nullptr, [](void* const(&)[32]) {});
}

uint32_t Ballot(bool vote) {
  struct Operand {
    bool vote;
    uint32_t out;
  } mine{vote, 0};
  Together("Ballot", &mine, [](void* const(&all)[32]) {
    uint32_t votes = 0;
    for (size_t i = 0; i < kLanes; ++i) votes |= uint32_t{static_cast<Operand*>(all[i])->vote} << i;
    for (void* one : all) static_cast<Operand*>(one)->out = votes;
  });
  return mine.out;
}

void MmaBF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperand mine{c, a, b};
  Together("MmaBF16", &mine, MmaAll<true>);
}
void MmaF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperand mine{c, a, b};
  Together("MmaF16", &mine, MmaAll<false>);
}
void MmaS8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaS8Operand mine{c, a, b};
  Together("MmaS8", &mine, MmaS8All);
}
void MmaSparse(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t places,
               uint32_t selector) {
  MmaSparseOperand mine{c, a, b, places, selector};
  Together(selector == 0 ? "MmaSparseBF16<0>" : "MmaSparseBF16<1>", &mine, MmaSparseAll);
}
void LdMatrix4(uint32_t (&r)[4], const void* row) {
  LdMatrixOperand mine{r, row};
  Together("LdMatrix4", &mine, LdMatrixAll<false>);
}
void LdMatrix4Trans(uint32_t (&r)[4], const void* row) {
  LdMatrixOperand mine{r, row};
  Together("LdMatrix4Trans", &mine, LdMatrixAll<true>);
}

void CpAsync16(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0)) {
    Fail("CpAsync16 at an address that is not aligned to 16 bytes");
  }
  Current().copies.push_back({shared, global, 16, valid});
}
void CpAsyncCommit() {
  Fiber& fiber = Current();
  fiber.committed.push_back(std::exchange(fiber.copies, {}));
}
void CpAsyncWaitFor(int groups) {
  Fiber& fiber = Current();
  while (fiber.committed.size() > static_cast<size_t>(groups)) {
    for (const Copy& copy : fiber.committed.front()) Perform(copy);
    fiber.committed.erase(fiber.committed.begin());
  }
}

uint32_t PackBF16(float low, float high) { return BF16FromFloat(low) | uint32_t{BF16FromFloat(high)} << 16; }
float BF16Low(uint32_t w) { return FloatFromBF16(static_cast<uint16_t>(w)); }
float BF16High(uint32_t w) { return FloatFromBF16(static_cast<uint16_t>(w >> 16)); }
uint32_t PackF16(float low, float high) { return F16FromFloat(low) | uint32_t{F16FromFloat(high)} << 16; }
float F16Low(uint32_t w) { return FloatFromF16(static_cast<uint16_t>(w)); }
float F16High(uint32_t w) { return FloatFromF16(static_cast<uint16_t>(w >> 16)); }
uint32_t MulBF16x2(uint32_t a, uint32_t b) {
  return PackBF16(BF16Low(a) * BF16Low(b), BF16High(a) * BF16High(b));
}
uint32_t MulF16x2(uint32_t a, uint32_t b) {  // products of 22 bits fit f32
  return PackF16(F16Low(a) * F16Low(b), F16High(a) * F16High(b));
}
uint32_t FmaBF16x2(uint32_t a, uint32_t b, uint32_t c) {
  // Through f32, to which it is rounded to odd, so that it is rounded once.
  const auto fma = [](double x, double y, double z) {
    const double exact = x * y + z;
    auto rounded = static_cast<float>(exact);
    if (!std::isfinite(rounded) || rounded == exact) return rounded;
    if (std::abs(double{rounded}) > std::abs(exact)) rounded = std::nextafter(rounded, 0.0f);
    return FloatOfBits(BitsOfFloat(rounded) | 1);
  };
  return PackBF16(fma(BF16Low(a), BF16Low(b), BF16Low(c)), fma(BF16High(a), BF16High(b), BF16High(c)));
}
uint32_t BytePermute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t out = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> (4 * i) & 0xf;
    auto byte = static_cast<uint8_t>(bytes >> (8 * (pick & 7)));
    if ((pick & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;  // its sign, replicated
    out |= uint32_t{byte} << (8 * i);
  }
  return out;
}
float FloatOfBits(uint32_t bits) { return std::bit_cast<float>(bits); }
uint32_t BitsOfFloat(float value) { return std::bit_cast<uint32_t>(value); }

std::byte* DynamicShared() { return machine->shared; }

}  // namespace terrace::simt
