#include "worker/cuda/rank_step.h"

namespace terrace {

Status RankStep::Begin(uint32_t tokens, uint32_t rows) {
  constexpr uint32_t kBits = 20;
  CHECK(tokens >> kBits == 0 && rows >> kBits == 0, tokens, " tokens, ", rows, " rows");
  layers_ahead_ = 0;
  return nccl_.Meet(++begun_ << 2 * kBits | uint64_t{tokens} << kBits | rows);
}

Status RankStep::AddUp(float* x, uint32_t tokens, CUstream_st* stream) {
  const auto order = is_invariant_ ? NcclCommunicator::SumOrder::kTree : NcclCommunicator::SumOrder::kFastest;
  return nccl_.QueueSum({.data = x, .count = size_t{tokens} * hidden_, .dtype = DType::kF32}, order, stream);
}

Status RankStep::EndLayer(CUstream_st* stream) {
  if (++layers_ahead_ < kLayersAhead) return Status();
  layers_ahead_ = 0;
  return nccl_.Drain(stream);
}

Status RankStep::Gather(float* mine, uint32_t rows, uint32_t width, float* all, CUstream_st* stream) {
  return nccl_.QueueAllGather({.data = mine, .count = size_t{rows} * width, .dtype = DType::kF32}, all,
                              stream);
}

Status RankStep::End(CUstream_st* stream) { return nccl_.Wait(stream); }

std::vector<StridedCopy> LogitCopies(uint32_t rows, uint32_t vocabulary, uint32_t ranks) {
  CHECK(vocabulary % ranks == 0, vocabulary, " for ", ranks, " ranks");
  const size_t width = vocabulary / ranks;
  std::vector<StridedCopy> copies;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    copies.push_back({.from = rank * rows * width,
                      .to = rank * width,
                      .from_pitch = width,
                      .to_pitch = vocabulary,
                      .width = width,
                      .height = rows});
  }
  return copies;
}

}  // namespace terrace
