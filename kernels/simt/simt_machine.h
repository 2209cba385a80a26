// Inside the emulator: the kernel that runs. Of simt_emulated.cc and warpgroup_emulated.cc.
#pragma once

#include <ucontext.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/simt/simt_emulated.h"

namespace terrace::simt {

inline constexpr size_t kLanes = 32, kGroupThreads = 128;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool valid;
};

struct Fiber {
  ucontext_t context;
  bool is_done = false;
  const char* waits_for = nullptr;  // null: it can go on
  uint32_t waits_at = 0;            // which of the named barriers
  std::vector<std::vector<Copy>> committed;
  std::vector<Copy> copies;  // of the group that is open
};

struct Warp {
  size_t arrived = 0;
  void* operands[kLanes] = {};
  const char* what = nullptr;
};

// Products of a warpgroup that are under way.
struct Product {
  uint32_t n;
  uint64_t a_tile, b_tile;
  bool has_fragments, adds, transposes;
  float* d[kGroupThreads];
  uint32_t a[kGroupThreads][4];
};
struct Accumulator {
  std::vector<float> values;
  size_t products = 0;  // that are not done
};
struct Warpgroup {
  size_t arrived = 0;
  void* operands[kGroupThreads] = {};
  const char* what = nullptr;
  std::vector<Product> open;
  std::vector<std::vector<Product>> committed;
  std::map<float*, Accumulator> accumulators;
};

// A barrier in shared memory.
struct Barrier {
  uint32_t count = 0, left = 0, phase = 0;
  int64_t bytes = 0;  // that are expected and have not come
  std::vector<Copy> copies;
};

struct Machine {
  Place place;
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<std::byte> stacks;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::map<const uint64_t*, Barrier> barriers;
  std::map<uint32_t, uint32_t> named;  // arrived at each
  size_t current = 0, at_barrier = 0, done = 0;
  std::byte* shared = nullptr;
  size_t shared_bytes = 0;
  ucontext_t scheduler;
};

extern Machine* machine;

Fiber& Current();
// The calling fiber sleeps until someone clears its waits_for.
void Sleep(const char* what);
// Ends the process with the message.
[[noreturn]] void Fail(const std::string& message);
void Perform(const Copy& copy);

}  // namespace terrace::simt
