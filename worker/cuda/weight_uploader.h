// Brings matrices of a model's files to a CUDA device, where kernels pack them
// (kernels/gemm/pack_matrix_gpu.h): piece by piece through pinned memory, so that the reading of one piece,
// the copying of the one before and the packing of the one before that go on at once. Takes kUploadSlots
// slots of the host's memory and as many of the device's. One thread at a time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/gemm/pack_matrix_gpu.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/engine/device_backend.h"

namespace terrace {

inline constexpr size_t kUploadSlots = 4;
inline constexpr uint64_t kUploadSlotBytes = uint64_t{16} << 20;  // a third of a millisecond of PCIe 5

class WeightUploader {
 public:
  // `slot_bytes` hold a tile of every matrix: RowsStagedIn is not 0. `pool`, which it borrows, reads.
  static StatusOr<std::unique_ptr<WeightUploader>> Create(ThreadPool& pool, uint64_t slot_bytes);
  ~WeightUploader();

  // Has read `parts` when it returns; what it queued goes on.
  Status Pack(const GpuMatrixParts& parts, const GpuPackTarget& to);
  // Until all is packed.
  Status Wait();
  const DeviceLoadTimes& times() const { return times_; }

 private:
  struct Slot {
    CudaBuffer host, device;
    cudaEvent_t copied = nullptr, packed = nullptr;
  };
  explicit WeightUploader(ThreadPool& pool) : pool_(pool) {}
  Status PackRows(const GpuMatrixParts& parts, GpuPackArgs args);

  ThreadPool& pool_;
  CudaStream copies_, packs_;
  std::array<Slot, kUploadSlots> slots_;
  size_t next_ = 0;
  DeviceLoadTimes times_;
};

}  // namespace terrace
