// What an NcclCommunicator needs of its rank's device beside NCCL. worker/cuda has the one of CUDA, tests one
// whose memory is the host's. Owned by the communicator; the thread that is in one of its calls calls this.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "base/status.h"
#include "kernels/reduce/tree_sum_gpu.h"

struct CUstream_st;  // *: CUDA's cudaStream_t

namespace terrace {

// Of a device; gives itself back.
using DeviceBytes = std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

class NcclDevice {
 public:
  virtual ~NcclDevice() = default;

  // Makes it the calling thread's device: before its other calls, and before NCCL's.
  virtual Status Use() = 0;
  virtual StatusOr<DeviceBytes> Allocate(size_t bytes) = 0;
  // A stream for what has none of the caller's; lives as long as this.
  virtual CUstream_st* stream() = 0;

  // These queue. Copies go in any direction between the memory of host and device.
  virtual Status Copy(void* to, const void* from, size_t bytes, CUstream_st* stream) = 0;
  virtual Status AddTree(const GpuTreeSumArgs& args, CUstream_st* stream) = 0;

  // Whether all that was queued is done; the errors of that.
  virtual StatusOr<bool> IsIdle(CUstream_st* stream) = 0;
};

}  // namespace terrace
