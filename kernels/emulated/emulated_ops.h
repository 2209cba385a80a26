// The AVX-512 backends on emulated instructions (avx512.h), for tests.
#pragma once

#include <span>

#include "kernels/cpu_leaves.h"
#include "kernels/op_table.h"

namespace terrace {

extern const CpuLeaves kEmulatedAvx512DotLeaves, kEmulatedAvx512Leaves;

// None where the processor lacks AVX2, which the emulation uses.
std::span<const OpTable> EmulatedOps();

}  // namespace terrace
