#include "kernels/moe/route_experts_cuda.h"

#include "kernels/moe/route_experts_device.h"

namespace terrace {

cudaError_t RouteExpertsCuda(const GpuRouteExpertsArgs& args, CudaLaunch how) {
  const uint32_t chunk = args.groups.chunk_tokens;
  const bool is_known =
      args.experts <= kMostGpuExperts && args.per_token <= kMostGpuExpertsPerToken && args.per_token > 0 &&
      args.per_token <= args.experts && args.pitch >= args.experts && IsChunkTokens(chunk) &&
      args.groups.chunk_count >= MostExpertChunks(args.tokens * args.per_token, args.experts, chunk);
  if (!is_known) return cudaErrorInvalidValue;
  if (args.tokens == 0) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  LaunchRouteExperts(args, [&](void (*kernel)(GpuRouteExpertsArgs), uint32_t blocks, uint32_t threads) {
    if (error == cudaSuccess) error = LaunchCuda(how, kernel, dim3(blocks), threads, 0, args);
  });
  return error;
}

}  // namespace terrace
