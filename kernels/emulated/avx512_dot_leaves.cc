// As cpu_avx512_dot.cc, which says why the order of these lines matters.

// Rolled, the loop that sets Dots::pairs_ at every kRun-th step looks as if it might not.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/emulated/emulated_ops.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"

#pragma GCC target("avx2,fma,f16c")
#define TERRACE_EMULATED_AVX512
#define TERRACE_AVX512_VNNI
#define TERRACE_AVX512_BF16

#include "kernels/simd/vec16_avx512.h"

#include "kernels/cpu_leaves_here.h"

namespace terrace {

const CpuLeaves kEmulatedAvx512DotLeaves = kLeavesHere;

}  // namespace terrace
