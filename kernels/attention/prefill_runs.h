// Cuts the prompts of a batch into the runs that prefill attention takes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/paged_attention_gpu.h"

namespace terrace {

// Tokens [first, first + count) of the batch, which are one sequence's at `position` and after.
struct PrefillChunk {
  uint32_t first = 0, count = 0, position = 0;
};

// Runs that read most come first: what the multiprocessors end with is short. `window` is GpuAttentionArgs';
// of a model whose layers differ, 0.
inline std::vector<GpuQueryRun> PrefillRuns(std::span<const PrefillChunk> chunks, uint32_t window = 0) {
  struct Cut {
    GpuQueryRun run;
    uint64_t reads;  // positions
  };
  std::vector<Cut> cuts;
  for (const PrefillChunk& chunk : chunks) {
    for (uint32_t begin = 0; begin < chunk.count; begin += kGpuQueryTile) {
      const uint32_t count = std::min(chunk.count - begin, kGpuQueryTile);
      const uint64_t seen = uint64_t{chunk.position} + begin + 1;  // by its first query, without a window
      const uint64_t before = window == 0 || seen <= window ? 0 : seen - window;
      cuts.push_back({{chunk.first + begin, count}, seen - before + count - 1});
    }
  }
  std::stable_sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.reads > b.reads; });
  std::vector<GpuQueryRun> runs;
  for (const Cut& cut : cuts) runs.push_back(cut.run);
  return runs;
}

}  // namespace terrace
