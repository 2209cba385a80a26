#include "kernels/emulated/emulated_ops.h"

#include <vector>

#include "kernels/cpu_table.h"

namespace terrace {

std::span<const OpTable> EmulatedOps() {
  static const std::vector<OpTable> tables = [] {
    std::vector<OpTable> out;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
      out.push_back(MakeCpuTable<kEmulatedAvx512DotLeaves>("emulated avx512-dot"));
      out.push_back(MakeCpuTable<kEmulatedAvx512Leaves>("emulated avx512"));
    }
    return out;
  }();
  return tables;
}

}  // namespace terrace
