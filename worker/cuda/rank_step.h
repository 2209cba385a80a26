// What a rank of a group sends the others in a step, over NCCL, in an order that all of them know: two sums a
// layer, then the logits, a batch of rows at a time. Between Begin and End nothing but this may wait for the
// device: what is queued there waits for the other ranks, and only this hears when one of them has gone. One
// thread at a time; knows nothing of CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "worker/parallel/nccl_communicator.h"

namespace terrace {

class RankStep {
 public:
  // A device's queue holds about a thousand launches, a layer takes up to about twenty: so many layers may be
  // queued ahead of the device.
  static constexpr uint32_t kLayersAhead = 16;

  // Borrows `nccl`. `hidden`: values of a token. `is_invariant`: sums are trees over the ranks, of at most
  // what nccl was made for.
  RankStep(NcclCommunicator& nccl, uint32_t hidden, bool is_invariant)
      : nccl_(nccl), hidden_(hidden), is_invariant_(is_invariant) {}

  // Rank 0 gets the logits. It is also the one that adds its products to the residual stream: the others
  // write theirs over it, so that the sum has the stream once.
  bool leads() const { return nccl_.rank() == 0; }
  uint32_t ranks() const { return nccl_.ranks(); }

  // Returns when all ranks have come, for a step of `tokens` of which the logits of `rows` are still to come;
  // a rank that came for other numbers is an error. Then the rest of the step has the group's timeout.
  Status Begin(uint32_t tokens, uint32_t rows);
  // x [tokens, hidden] of all ranks become their sum.
  Status AddUp(float* x, uint32_t tokens, CUstream_st* stream);
  // A layer is queued; waits now and then.
  Status EndLayer(CUstream_st* stream);
  // The logits of `rows` rows: every rank has `mine` [rows, width] of its part of the vocabulary, `all` is
  // [ranks, rows, width].
  Status Gather(float* mine, uint32_t rows, uint32_t width, float* all, CUstream_st* stream);
  // Waits until what was queued since Begin is done.
  Status End(CUstream_st* stream);

  // This rank cannot go on: ends what waits for it, here and at the others. Any thread.
  void Abort(const Status& why) { nccl_.Abort(why); }

 private:
  NcclCommunicator& nccl_;
  const uint32_t hidden_;
  const bool is_invariant_;
  uint64_t begun_ = 0;
  uint32_t layers_ahead_ = 0;
};

// A rectangle of floats from one array to another, in floats.
struct StridedCopy {
  size_t from = 0, to = 0;  // where it begins
  size_t from_pitch = 0, to_pitch = 0;
  size_t width = 0, height = 0;
};
// From what RankStep::Gather gathers to rows of the whole vocabulary, [rows, vocabulary]. Pure.
std::vector<StridedCopy> LogitCopies(uint32_t rows, uint32_t vocabulary, uint32_t ranks);

}  // namespace terrace
