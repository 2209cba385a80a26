#include "worker/cuda/weight_uploader.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/clock.h"
#include "kernels/gemm/pack_matrix_cuda.h"

namespace terrace {

StatusOr<std::unique_ptr<WeightUploader>> WeightUploader::Create(ThreadPool& pool, uint64_t slot_bytes) {
  auto out = std::unique_ptr<WeightUploader>(new WeightUploader(pool));
  ASSIGN_OR_RETURN(out->copies_, CudaStream::Create());
  ASSIGN_OR_RETURN(out->packs_, CudaStream::Create());
  for (Slot& slot : out->slots_) {
    ASSIGN_OR_RETURN(slot.host, CudaBuffer::Pinned(slot_bytes, "weights on their way to the device"));
    ASSIGN_OR_RETURN(slot.device, CudaBuffer::Device(slot_bytes, "weights that are packed"));
    RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
    RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&slot.packed, cudaEventDisableTiming));
  }
  return out;
}

WeightUploader::~WeightUploader() {
  for (const CudaStream* stream : {&copies_, &packs_}) {
    if (stream->get() != nullptr) cudaStreamSynchronize(stream->get());
  }
  for (Slot& slot : slots_) {
    if (slot.copied != nullptr) cudaEventDestroy(slot.copied);
    if (slot.packed != nullptr) cudaEventDestroy(slot.packed);
  }
}

Status WeightUploader::Pack(const GpuMatrixParts& parts, const GpuPackTarget& to) {
  const uint32_t rows = to.matrix.rows, most = RowsStagedIn(parts, slots_[0].host.bytes());
  CHECK(most > 0, "rows beyond ", slots_[0].host.bytes(), " bytes");
  for (uint32_t row = 0; row < rows; row += most) {
    RETURN_IF_ERROR(PackRows(parts, GpuPackArgsOf(parts, to, row, std::min(most, rows - row))));
  }
  return {};
}

Status WeightUploader::PackRows(const GpuMatrixParts& parts, GpuPackArgs args) {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  const MonoTime begin = RealClock().Now();
  RETURN_IF_CUDA_ERROR(cudaEventSynchronize(slot.copied));
  const MonoTime waited = RealClock().Now();
  const std::vector<StagedPiece> pieces = StagedPieces(parts, args);
  pool_.ParallelFor(pieces.size(), 1, [&](size_t first, size_t end) {
    for (size_t i = first; i < end; ++i) {
      std::memcpy(slot.host.data() + pieces[i].at, pieces[i].from, pieces[i].bytes);
    }
  });
  times_.wait_seconds += Seconds(waited - begin);
  times_.read_seconds += Seconds(RealClock().Now() - waited);

  RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(copies_.get(), slot.packed));
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(slot.device.data(), slot.host.data(), StagedBytes(args),
                                       cudaMemcpyHostToDevice, copies_.get()));
  RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.copied, copies_.get()));
  RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(packs_.get(), slot.copied));
  args.staged = slot.device.data();
  RETURN_IF_CUDA_ERROR(PackMatrixCuda(args, {.stream = packs_.get(), .follows = false}));
  RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.packed, packs_.get()));
  return {};
}

Status WeightUploader::Wait() {
  const MonoTime begin = RealClock().Now();
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(packs_.get()));
  times_.wait_seconds += Seconds(RealClock().Now() - begin);
  return {};
}

}  // namespace terrace
