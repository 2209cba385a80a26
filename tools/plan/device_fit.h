// Which ways to split a model over some devices fit, and what they would do: `terrace inspect --fit`. Pure;
// values.
//
// The figures of known devices are their makers' (dense bf16), times the shares that Terrace's steps reach of
// them on an H100 (docs/benchmarks.md#cuda): 0.77 of the bandwidth, 0.62 of the rate. What a message between
// devices takes is assumed, not measured: 10 us over NVLink, 20 us over PCIe, at 0.8 of the link.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tools/plan/model_shape.h"
#include "tools/plan/parallel_cost.h"

namespace terrace {

inline constexpr uint32_t kMostDevices = 64;

struct DeviceGroup {
  uint32_t count = 1;
  DeviceSpec device = {};
  bool has_assumed_rates = false;  // a size was given: rates are those of the known device nearest in memory
};

// "8x80GB", "2x24GiB", "4xH200", "H100": names in any case. INVALID_ARGUMENT names what is wrong and what
// there is.
StatusOr<DeviceGroup> ParseDevices(std::string_view text);

struct FitOptions {
  uint32_t batch = 0;              // sequences at once, of all devices together; 0: 16 for each device
  uint32_t context = 0;            // tokens of each; 0: 4,096, or the model's context where that is shorter
  uint32_t prefill_tokens = 2048;  // of a prompt, above 0; a longer one is cut to the model's context
  std::string kv_dtype = "bf16";   // as of ParseKvDType, but f32, which GPU workers refuse
};

// One way: `replicas` groups of ranks, one on each device.
struct SplitFit {
  ParallelDegrees degrees = {};
  uint32_t replicas = 1;
  std::string why_not = {};  // "": it fits; else what a worker says that refuses it, or what is short
  // Of the rank with the most; 0 where the model cannot be split so.
  uint64_t weight_bytes = 0, workspace_bytes = 0;
  uint64_t kv_bytes_per_token = 0;  // of the rank with the most
  uint64_t kv_tokens = 0;           // of a replica: what its fullest rank has memory for
  uint32_t batch = 0;               // of a replica: its share, rounded up
  StepEstimate decode = {}, prefill = {};
  double decode_tokens_per_second = 0, prefill_tokens_per_second = 0;  // of all replicas

  bool fits() const { return why_not.empty(); }
};

// One for each pair of degrees whose product divides the devices: tensor, then pipeline, rising.
struct SplitFits {
  FitOptions options = {};  // with what was left to be chosen
  std::vector<SplitFit> splits = {};
};
// INVALID_ARGUMENT for a context longer than the model's, a prompt of no tokens, or a kv_dtype that is
// unknown or f32.
StatusOr<SplitFits> FitSplits(const ModelShape& shape, const DeviceGroup& group, const FitOptions& options);

// The one with the most decoded tokens a second of those that fit; of several within 2% the one with the
// fewest ranks. Nothing where none fits.
std::optional<size_t> Recommend(std::span<const SplitFit> fits);

}  // namespace terrace
