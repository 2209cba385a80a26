// Whatever is shared with other files is included above the pragma: an inline function compiled below it
// could be the copy that the linker keeps for all.
#include <immintrin.h>

#include "kernels/cpu_leaves.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"

#pragma GCC target("avx2,fma,f16c")

#include "kernels/simd/vec16_avx2.h"

#include "kernels/cpu_leaves_here.h"

namespace terrace {

const CpuLeaves kAvx2Leaves = kLeavesHere;

}  // namespace terrace
