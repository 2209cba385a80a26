#include "kernels/attention/attention_runs.h"

#include <algorithm>
#include <vector>

namespace terrace {

std::span<const AttentionRun> AttentionRuns(const PagedAttentionArgs& a) {
  const size_t group = a.heads / a.batch.kv_heads, queries = a.batch.tokens * group;
  thread_local std::vector<AttentionRun> runs;
  runs.clear();
  size_t units = 0;  // of a key-value head
  for (size_t first = 0, end; first < queries; first = end) {
    const auto* table = a.batch.block_tables[first / group];
    size_t nearest = SIZE_MAX, furthest = 0;
    for (end = first; end < queries && end < first + AttentionRun::kMostQueries; ++end) {
      if (a.batch.block_tables[end / group] != table) break;
      nearest = std::min<size_t>(nearest, a.batch.positions[end / group]);
      furthest = std::max<size_t>(furthest, a.batch.positions[end / group]);
    }
    const size_t first_span = a.WindowBegin(nearest) / kAttentionSpan;
    runs.push_back({.first = first,
                    .count = end - first,
                    .first_span = first_span,
                    .spans = furthest / kAttentionSpan + 1 - first_span,
                    .unit = units});
    units += runs.back().units();
  }
  const size_t per_head = runs.size();
  for (size_t kv_head = 1; kv_head < a.batch.kv_heads; ++kv_head) {
    for (size_t i = 0; i < per_head; ++i) {
      AttentionRun run = runs[i];
      run.kv_head = kv_head;
      run.unit += kv_head * units;
      runs.push_back(run);
    }
  }
  return runs;
}

}  // namespace terrace
