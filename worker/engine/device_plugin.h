// The library of the CUDA backend (worker/cuda), which the program loads when it starts instead of being
// linked with it: the same program starts where there is no toolkit, no driver and no GPU.
#pragma once

#include "base/status.h"
#include "worker/engine/device_backend.h"

namespace terrace {

// Whether a library is expected: TERRACE_CUDA_PLUGIN names one, or libterrace_cuda.so lies beside the
// executable.
bool HasDevicePlugin();

// Loads it, once and for good, and probes the device. UNAVAILABLE, reason no_device, says in one line what is
// missing: the library, what it is linked with, the driver or a device. Any thread.
StatusOr<const DeviceBackend*> LoadDevicePlugin();

}  // namespace terrace
