// How CPUs share out the attention of a batch: into runs of queries that read the same keys and values
// together, and a run into spans of positions. Which thread takes what never changes a bit.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/attention/paged_attention.h"

namespace terrace {

// Consecutive query heads of one key-value head and one sequence. Work is counted in units of one query and
// one span.
struct AttentionRun {
  static constexpr size_t kMostQueries = 16;

  size_t kv_head = 0;
  size_t first = 0, count = 0;  // queries of kv_head: token * (heads / kv_heads) + head of its group
  size_t first_span = 0;        // of the query whose window begins first
  size_t spans = 0;             // from there to the end of the query that reaches furthest
  size_t unit = 0;              // units before this run

  size_t end_span() const { return first_span + spans; }
  size_t units() const { return count * spans; }
};

// In rising order of `unit`; key-value heads are the outer index. Good until the calling thread's next call.
std::span<const AttentionRun> AttentionRuns(const PagedAttentionArgs& args);

// The softmax of one query over one span, before it meets others: head_dim values, sum_j w[j] * value[j] with
// w[j] = exp(s[j] - largest), padded to whole vectors; then `largest`, then sum_j w[j]. A span's partials are
// the rows of its run's queries, one after the other.
struct AttentionPartial {
  size_t head_dim;

  size_t largest() const { return (head_dim + 15) / 16 * 16; }
  size_t sum() const { return largest() + 1; }
  size_t pitch() const { return largest() + 16; }  // floats of a row
};

// The spans of a run's queries merged so far; their values are in PagedAttentionArgs::out.
struct AttentionTotals {
  alignas(64) float largest[AttentionRun::kMostQueries];
  alignas(64) float sum[AttentionRun::kMostQueries];
};

}  // namespace terrace
