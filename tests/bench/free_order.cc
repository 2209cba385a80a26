#include "tests/bench/free_order.h"

#pragma GCC diagnostic ignored "-Wuninitialized"  // as in kernels/cpu_avx512.cc
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "kernels/cpu_leaves.h"
#include "kernels/scalar_convert.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#include "kernels/simd/vec16_avx512.h"

#include "kernels/attention/paged_attention_cpu.h"

namespace terrace {
namespace {

constexpr size_t kMostSpans = kFreeOrderPositions / kAttentionSpan;

struct FreeOrderQuery {
  size_t positions;
  SoftmaxPart* part;
};

template <size_t kQueries>
void AttendAtOnce(const PagedAttentionArgs& a, size_t token, size_t kv_head, size_t first, size_t last,
                  const Query* queries, const FreeOrderQuery* more) {
  static thread_local float weights[kMostSpans][kQueryBlock][kAttentionSpan];
  static thread_local Span spans[kMostSpans];
  const auto of_span = [&](size_t i) -> float(&)[kQueries][kAttentionSpan] {
    return reinterpret_cast<float(&)[kQueries][kAttentionSpan]>(weights[i]);
  };
  Vec16 largest[kQueries];
  for (Vec16& each : largest) each = Splat(-3e38f);
  for (size_t begin = first, s = 0; begin < last; begin += kAttentionSpan, ++s) {
    const size_t count = last - begin < kAttentionSpan ? last - begin : kAttentionSpan;
    FindRows<F32Rows>(a, token, kv_head, begin, 0, count, spans[s]);
    auto& scores = of_span(s);
    Scores<F32Rows>(a, spans[s], 0, count, queries, scores);
    const size_t end = WholeVectors(count);
    for (size_t i = 0; i < kQueries; ++i) {
      const size_t reached = more[i].positions > begin ? more[i].positions - begin : 0;
      for (size_t j = reached < count ? reached : count; j < end; ++j) scores[i][j] = -3e38f;
      for (size_t j = 0; j < end; j += 16) largest[i] = Max(largest[i], Load(scores[i] + j));
    }
  }
  float most[kQueries];
  Vec16 sums[kQueries];
  for (size_t i = 0; i < kQueries; ++i) {
    most[i] = Largest(largest[i]);
    sums[i] = Zero();
    for (size_t d = 0; d < a.batch.head_dim; ++d) queries[i].out[d] = 0;
  }
  for (size_t begin = first, s = 0; begin < last; begin += kAttentionSpan, ++s) {
    auto& scores = of_span(s);
    for (size_t i = 0; i < kQueries; ++i) {
      for (size_t j = 0; j < WholeVectors(spans[s].end); j += 16) {
        const Vec16 weight = Exp(Sub(Load(scores[i] + j), Splat(most[i])));
        Store(scores[i] + j, weight);
        sums[i] = Add(sums[i], weight);
      }
    }
    AddValues<F32Rows, kQueries>(a, spans[s], 0, spans[s].end, scores, queries);
  }
  for (size_t i = 0; i < kQueries; ++i) *more[i].part = {.largest = most[i], .sum = Sum(sums[i])};
}

}  // namespace

bool HasFreeOrderLeaves() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

const CpuLeaves& FreeOrderLeaves() { return kAvx512Leaves; }  // renamed, as BUILD.bazel says

void FreeOrderAttention(const PagedAttentionArgs& a, size_t first, size_t last, float* out,
                        SoftmaxPart* parts) {
  const size_t group = a.heads / a.batch.kv_heads, head_dim = a.batch.head_dim;
  for (size_t kv_head = 0; kv_head < a.batch.kv_heads; ++kv_head) {
    const size_t items = a.batch.tokens * group;
    for (size_t item = 0; item < items;) {
      Query queries[kQueryBlock];
      FreeOrderQuery more[kQueryBlock];
      size_t count = 0, reach = 0, token = item / group;
      const auto* table = a.batch.block_tables[token];
      for (; count < kQueryBlock && item < items; ++count, ++item) {
        token = item / group;
        if (a.batch.block_tables[token] != table) break;
        const size_t row = token * a.heads + kv_head * group + item % group;
        const size_t positions = size_t{a.batch.positions[token]} + 1;
        queries[count] = {.q = a.q + row * head_dim, .out = out + row * head_dim, .begin = 0, .end = 0};
        more[count] = {.positions = positions, .part = parts + row};
        if (positions > reach) reach = positions;
      }
      token = (item - 1) / group;
      const size_t end = reach < last ? reach : last;
      switch (count) {
        case 1:
          AttendAtOnce<1>(a, token, kv_head, first, end, queries, more);
          break;
        case 2:
          AttendAtOnce<2>(a, token, kv_head, first, end, queries, more);
          break;
        case 3:
          AttendAtOnce<3>(a, token, kv_head, first, end, queries, more);
          break;
        default:
          AttendAtOnce<4>(a, token, kv_head, first, end, queries, more);
      }
    }
  }
}

}  // namespace terrace
