#include <vector>

#include "kernels/cpu_table.h"

namespace terrace {
namespace {

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool HasAvx512Vnni() { return HasAvx512() && __builtin_cpu_supports("avx512vnni"); }
bool HasAvx512Dot() { return HasAvx512Vnni() && __builtin_cpu_supports("avx512bf16"); }

std::vector<OpTable> MakeTables() {
  std::vector<OpTable> tables;
  if (HasAvx512Dot()) tables.push_back(MakeCpuTable<kAvx512DotLeaves>("cpu avx512-dot"));
  if (HasAvx512Vnni()) tables.push_back(MakeCpuTable<kAvx512VnniLeaves>("cpu avx512-vnni"));
  if (HasAvx512()) tables.push_back(MakeCpuTable<kAvx512Leaves>("cpu avx512"));
  if (HasAvx2()) tables.push_back(MakeCpuTable<kAvx2Leaves>("cpu avx2"));
  tables.push_back(MakeCpuTable<kGenericLeaves>("cpu generic"));
  return tables;
}

}  // namespace

std::span<const OpTable> AllCpuOps() {
  static const std::vector<OpTable> tables = MakeTables();
  return tables;
}

const OpTable& CpuOps() { return AllCpuOps().front(); }

}  // namespace terrace
