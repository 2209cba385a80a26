// Which models there are kernels for on a CUDA device, and which groups of ranks on several: for workers
// there, and for those who plan without one.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "worker/formats/model_config.h"

namespace terrace {

// Kernels of devices take so many columns of a matrix together, and so many rows.
inline constexpr uint32_t kDeviceColumns = 64, kDeviceRows = 16;

// Scratch memory for partial results, of decode attention above all: 256 MiB.
inline constexpr uint64_t kDevicePartialFloats = uint64_t{64} << 20;

// UNIMPLEMENTED, reason unsupported_device, names what of the model there are no kernels for, with the limit.
Status CheckDeviceModel(const ModelConfig& config);

// INVALID_ARGUMENT, reason invalid_value: more ranks than kMaxDeviceRanks, or several stages. What a model
// has to do with it says PlanDeviceShard.
Status CheckDeviceGroup(uint32_t ranks, uint32_t stages);

}  // namespace terrace
