// The device of a rank that has a CUDA GPU, for its NcclCommunicator.
#pragma once

#include <memory>

#include "worker/parallel/nccl_device.h"

namespace terrace {

// `device`: its number among those that CUDA shows this process. Errors of the runtime.
StatusOr<std::unique_ptr<NcclDevice>> OpenCudaNcclDevice(int device);

}  // namespace terrace
