#include "kernels/activation/silu_mul_cuda.h"
#include "kernels/launch_geometry.h"

namespace terrace {
namespace {

__global__ void SiluMulKernel(SiluMulArgs a) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < a.count; i += stride) {
    a.out[i] = a.gate[i] / (1 + expf(-a.gate[i])) * a.up[i];
  }
}

}  // namespace

cudaError_t SiluMulCuda(const SiluMulArgs& args, cudaStream_t stream) {
  const LaunchGeometry geometry = ElementwiseGeometry(args.count);
  if (geometry.blocks == 0) return cudaSuccess;
  SiluMulKernel<<<geometry.blocks, geometry.threads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace terrace
