// What this machine can do at best, measured: the limits that kernels are compared with. Each takes about a
// tenth of a second; total work over wall time, of `threads` threads at once.
#pragma once

#include <cstddef>
#include <optional>

namespace terrace {

struct MachineLimits {
  double read_bytes = 0;       // per second, of memory larger than any cache
  double f32 = 0;              // multiplications and additions per second, 16 lanes at once or 8
  double int8 = 0;             // the same of bytes: vpdpbusd, else vpmaddubsw, vpmaddwd and vpaddd
  std::optional<double> bf16;  // of vdpbf16ps, where the processor has it
};

// Holds 1 GiB of memory to read. Of one thread at a time; Measure() runs `threads` of its own.
class LimitsMeter {
 public:
  explicit LimitsMeter(size_t threads);
  ~LimitsMeter();
  LimitsMeter(const LimitsMeter&) = delete;
  LimitsMeter& operator=(const LimitsMeter&) = delete;

  MachineLimits Measure();

 private:
  const size_t threads_;
  std::byte* const memory_;
};

}  // namespace terrace
