// Whatever is shared with other files is included above the pragma: an inline function compiled below it
// could be the copy that the linker keeps for all.

// GCC 12 takes the "any value" operands inside its own AVX-512 intrinsics for uninitialised variables (GCC
// bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/cpu_leaves.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512vnni")
#define TERRACE_AVX512_VNNI  // vpdpbusd

#include "kernels/simd/vec16_avx512.h"

#include "kernels/cpu_leaves_here.h"

namespace terrace {

const CpuLeaves kAvx512VnniLeaves = kLeavesHere;

}  // namespace terrace
