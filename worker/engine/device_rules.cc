#include "worker/engine/device_rules.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/moe/route_experts_gpu.h"
#include "kernels/sample/sample_gpu.h"
#include "worker/engine/max_ranks.h"

namespace terrace {
namespace {

static_assert(kMaxExperts <= kMostGpuExperts && kMaxExpertsPerToken <= kMostGpuExpertsPerToken);

template <typename... Text>
Status Unsupported(const Text&... text) {
  return WithReason(Unimplemented(text...), "unsupported_device");
}

}  // namespace

Status CheckDeviceModel(const ModelConfig& config) {
  if (!config.ffn_sizes.empty()) {
    const auto [least, most] = std::ranges::minmax(config.ffn_sizes);
    return Unsupported(
        "feed-forward sizes from ", least, " to ", most,
        "; GPU workers take layers of equal ones, which terrace prune --remove-ffn does not leave");
  }
  constexpr uint32_t kHeadDims[] = {32, 64, 128, 256};
  if (std::ranges::find(kHeadDims, config.head_dim) == std::end(kHeadDims))
    return Unsupported("heads of ", config.head_dim, " elements; GPU workers take 32, 64, 128 and 256");
  if (const uint32_t most = GpuMostGroupHeads(config.head_dim); config.heads / config.kv_heads > most)
    return Unsupported(config.heads / config.kv_heads, " query heads of ", config.head_dim,
                       " elements to a key-value head; GPU workers take up to ", most);
  for (const auto& [name, width] :
       {std::pair{"hidden size", config.hidden_size}, std::pair{"feed-forward size", config.ffn_size},
        std::pair{"query width", config.heads * config.head_dim}}) {
    if (width % kDeviceColumns != 0)
      return Unsupported("a ", name, " of ", width, "; GPU workers take multiples of ", kDeviceColumns);
  }
  if (config.vocab_size > kGpuMostSampleVocab)
    return Unsupported("a vocabulary of ", config.vocab_size, "; GPU workers take up to ",
                       kGpuMostSampleVocab);
  const uint32_t spans = std::bit_ceil((config.context_length + kGpuAttentionSpan - 1) / kGpuAttentionSpan);
  if (GpuAttentionPartialFloats(1, config.heads, config.head_dim, spans) > kDevicePartialFloats)
    return Unsupported("a context of ", config.context_length,
                       " tokens; the partial results of its attention take more than the ",
                       kDevicePartialFloats * sizeof(float), " bytes that GPU workers have for them");
  return {};
}

Status CheckDeviceGroup(uint32_t ranks, uint32_t stages) {
  const auto bad = [](const auto&... text) { return WithReason(InvalidArgument(text...), "invalid_value"); };
  if (stages > 1) return bad("group.pipeline_parallel: ", stages, " is for CPUs only; CUDA has 1");
  if (ranks > kMaxDeviceRanks)
    return bad("group.ranks: ", ranks, " is for CPUs only; CUDA has up to ", kMaxDeviceRanks);
  return {};
}

}  // namespace terrace
