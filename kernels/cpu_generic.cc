#include "kernels/cpu_leaves.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/quant/weight_values.h"
#include "kernels/scalar_convert.h"

#include "kernels/simd/vec16_generic.h"

#include "kernels/cpu_leaves_here.h"

namespace terrace {

const CpuLeaves kGenericLeaves = kLeavesHere;

}  // namespace terrace
