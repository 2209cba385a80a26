// What several tests of kernels lay out on the device: packed matrices, batches of prompts.
#pragma once

#include <vector>

#include "kernels/attention/prefill_attention_testing.h"
#include "kernels/gemm/gpu_matrix_testing.h"
#include "tests/gpu/gpu_testing.h"

namespace terrace {

// A packed matrix on the device too.
struct DeviceMatrix {
  explicit DeviceMatrix(const PackedGpuMatrix& from)
      : codes(from.codes), scales(from.scales), matrix(from.matrix) {
    matrix.codes = codes.data();
    matrix.scales = scales.data();
  }
  DeviceArray<std::byte> codes, scales;
  GpuMatrix matrix;
};

// A batch's arrays. What the batch has no more than on the host, `partials` and `arrived`, is the caller's.
class DevicePrefillBatch {
 public:
  explicit DevicePrefillBatch(PrefillBatch& batch) : DevicePrefillBatch(batch, batch.Args()) {}

  const GpuAttentionArgs& args() const { return args_; }
  std::vector<uint16_t> out() const { return out_.Get(); }
  void ClearOut() { out_.Clear(); }

 protected:
  DevicePrefillBatch(const PrefillBatch& batch, const GpuAttentionArgs& args)
      : args_(args),
        runs_(batch.runs),
        positions_(batch.positions),
        sequences_(batch.sequences),
        tables_(batch.tables),
        q_(batch.q),
        keys_(batch.keys),
        values_(batch.values),
        key_scales_(batch.key_scales),
        value_scales_(batch.value_scales),
        out_(batch.tokens() * batch.width()) {
    if (args_.runs != nullptr) args_.runs = runs_.data();
    args_.batch.positions = positions_.data();
    args_.batch.sequences = sequences_.data();
    args_.batch.block_tables = tables_.data();
    args_.q = q_.data();
    args_.kv.keys = {keys_.data(), key_scales_.data()};
    args_.kv.values = {values_.data(), value_scales_.data()};
    args_.out = out_.data();
  }

  GpuAttentionArgs args_;
  DeviceArray<GpuQueryRun> runs_;
  DeviceArray<uint32_t> positions_, sequences_;
  DeviceArray<int32_t> tables_;
  DeviceArray<uint16_t> q_;
  DeviceArray<std::byte> keys_, values_;
  DeviceArray<float> key_scales_, value_scales_;
  DeviceArray<uint16_t> out_;  // NaNs
};

}  // namespace terrace
