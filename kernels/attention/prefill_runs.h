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

// Runs that read most come first: what the multiprocessors end with is short.
inline std::vector<GpuQueryRun> PrefillRuns(std::span<const PrefillChunk> chunks) {
  struct Cut {
    GpuQueryRun run;
    uint64_t end;  // positions that its last query reads
  };
  std::vector<Cut> cuts;
  for (const PrefillChunk& chunk : chunks) {
    for (uint32_t begin = 0; begin < chunk.count; begin += kGpuQueryTile) {
      const uint32_t count = std::min(chunk.count - begin, kGpuQueryTile);
      cuts.push_back({{chunk.first + begin, count}, uint64_t{chunk.position} + begin + count});
    }
  }
  std::stable_sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.end > b.end; });
  std::vector<GpuQueryRun> runs;
  for (const Cut& cut : cuts) runs.push_back(cut.run);
  return runs;
}

}  // namespace terrace
