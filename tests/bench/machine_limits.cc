#include "tests/bench/machine_limits.h"

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace terrace {
namespace {

constexpr size_t kMemory = size_t{1} << 30;
constexpr long kLoops = 4'000'000;

// Wall seconds that `threads` threads take for body(thread), from a common start.
double Run(size_t threads, const std::function<void(size_t)>& body) {
  std::atomic<size_t> ready = 0;
  std::atomic<bool> go = false;
  std::vector<std::jthread> workers;
  for (size_t thread = 1; thread < threads; ++thread) {
    workers.emplace_back([&, thread] {
      ++ready;
      while (!go) _mm_pause();
      body(thread);
    });
  }
  while (ready + 1 < threads) _mm_pause();
  const MonoTime begin = RealClock().Now();
  go = true;
  body(0);
  workers.clear();
  return Seconds(RealClock().Now() - begin);
}

[[gnu::target("avx2")]] void Read(const std::byte* from, size_t bytes) {
  __m256i sums[8] = {};
  for (size_t i = 0; i < bytes; i += sizeof(sums)) {
#pragma GCC unroll 8
    for (size_t j = 0; j < 8; ++j) {
      sums[j] =
          _mm256_xor_si256(sums[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(from + i + 32 * j)));
    }
  }
  for (const __m256i& sum : sums) asm volatile("" : : "x"(sum));
}

// Twelve independent sums, as many as two instructions a cycle need with a latency of six; the loop holds
// nothing else, so that no compiler adds moves.
#define TERRACE_TWELVE(instruction, a, b, sum)                                                              \
  instruction " " a "," b "," sum "0\n" instruction " " a "," b "," sum "1\n" instruction " " a "," b       \
              "," sum "2\n" instruction " " a "," b "," sum "3\n" instruction " " a "," b "," sum           \
              "4\n" instruction " " a "," b "," sum "5\n" instruction " " a "," b "," sum "6\n" instruction \
              " " a "," b "," sum "7\n" instruction " " a "," b "," sum "8\n" instruction " " a "," b       \
              "," sum "9\n" instruction " " a "," b "," sum "10\n" instruction " " a "," b "," sum "11\n"
#define TERRACE_LOOP(instruction, a, b, sum)                                                              \
  long left = kLoops;                                                                                     \
  asm volatile(                                                                                           \
      "vpxor %%xmm14, %%xmm14, %%xmm14\n vpxor %%xmm15, %%xmm15, %%xmm15\n"                               \
      "1:\n" TERRACE_TWELVE(instruction, a, b, sum) "dec %0\n jnz 1b\n"                                   \
      : "+r"(left)                                                                                        \
      :                                                                                                   \
      : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
        "xmm14", "xmm15", "cc")

void DotInt8(size_t) { TERRACE_LOOP("vpdpbusd", "%%zmm14", "%%zmm15", "%%zmm"); }
void DotBF16(size_t) { TERRACE_LOOP("vdpbf16ps", "%%zmm14", "%%zmm15", "%%zmm"); }
void Fma512(size_t) { TERRACE_LOOP("vfmadd231ps", "%%zmm14", "%%zmm15", "%%zmm"); }
void Fma256(size_t) { TERRACE_LOOP("vfmadd231ps", "%%ymm14", "%%ymm15", "%%ymm"); }
constexpr double kInstructions = 12.0 * kLoops;

// Without vpdpbusd, 32 products of bytes take three instructions. (vpmaddubsw saturates where all eight bits
// are used: the rate is one that no exact product of such bytes can reach.)
#define TERRACE_THREE(i)                                                                  \
  "vpmaddubsw %%ymm14, %%ymm15, %%ymm1" #i "\n vpmaddwd %%ymm14, %%ymm1" #i ", %%ymm1" #i \
  "\n vpaddd %%ymm1" #i ", %%ymm" #i ", %%ymm" #i "\n"
void DotInt8InThree(size_t) {
  long left = kLoops;
  asm volatile(
      "vpxor %%xmm14, %%xmm14, %%xmm14\n vpxor %%xmm15, %%xmm15, %%xmm15\n"
      "1:\n" TERRACE_THREE(0) TERRACE_THREE(1) TERRACE_THREE(2) TERRACE_THREE(3) "dec %0\n jnz 1b\n"
      : "+r"(left)
      :
      : "xmm0", "xmm1", "xmm2", "xmm3", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "cc");
}

std::byte* Allocate() {
  void* memory = mmap(nullptr, kMemory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED, "no memory for the bandwidth test");
  madvise(memory, kMemory, MADV_HUGEPAGE);
  std::memset(memory, 1, kMemory);
  return static_cast<std::byte*>(memory);
}

}  // namespace

LimitsMeter::LimitsMeter(size_t threads) : threads_(threads), memory_(Allocate()) {}
LimitsMeter::~LimitsMeter() { munmap(memory_, kMemory); }

MachineLimits LimitsMeter::Measure() {
  MachineLimits out;
  // Small parts that threads take in turn: one that lost its processor does not hold up the whole.
  constexpr size_t kPart = size_t{8} << 20;
  for (int i = 0; i < 3; ++i) {
    std::atomic<size_t> next = 0;
    const double seconds = Run(threads_, [&](size_t) {
      for (size_t at = next.fetch_add(kPart); at < kMemory; at = next.fetch_add(kPart))
        Read(memory_ + at, kPart);
    });
    out.read_bytes = std::max(out.read_bytes, kMemory / seconds);
  }
  const auto rate = [&](void (*loop)(size_t), double operations) {
    double best = 0;
    for (int i = 0; i < 3; ++i) {
      const double seconds = Run(threads_, loop);
      best = std::max(best, static_cast<double>(threads_) * kInstructions * operations / seconds);
    }
    return best;
  };
  out.f32 = __builtin_cpu_supports("avx512f") ? rate(Fma512, 32) : rate(Fma256, 16);
  out.int8 = __builtin_cpu_supports("avx512vnni") ? rate(DotInt8, 128) : rate(DotInt8InThree, 64 / 3.0);
  if (__builtin_cpu_supports("avx512bf16")) out.bf16 = rate(DotBF16, 64);
  return out;
}

}  // namespace terrace
