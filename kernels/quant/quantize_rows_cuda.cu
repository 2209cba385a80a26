#include "kernels/quant/quantize_rows_cuda.h"

#include "kernels/quant/quantize_rows_device.h"

namespace terrace {

cudaError_t QuantizeRowsCuda(const GpuQuantizeRowsArgs& args, CudaLaunch how) {
  if (args.width == 0 || args.width % 8 != 0) return cudaErrorInvalidValue;
  if (args.codes == RowCodes::kNone) return cudaErrorInvalidValue;
  if (args.rows == 0) return cudaSuccess;
  const auto kernel = args.codes == RowCodes::kInt8 ? QuantizeRowsKernel<RowCodes::kInt8>
                                                    : QuantizeRowsKernel<RowCodes::kE4M3>;
  return LaunchCuda(how, kernel, dim3(args.rows), kQuantizeThreads, 0, args);
}

}  // namespace terrace
