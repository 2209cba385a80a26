// The table of an instruction set: its leaves, shared out to the threads of a pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu_leaves.h"
#include "kernels/gemm/weight_strips.h"
#include "kernels/op_table.h"

namespace terrace {
namespace {

// Multiply-adds that are worth another thread: a few microseconds of one core.
constexpr size_t kPartWork = 128 << 10;

// body(begin, end) over [0, count), each item costing `work` multiply-adds, in ranges of whole `multiple`s.
void Share(ThreadPool& pool, size_t count, size_t work, size_t multiple,
           const std::function<void(size_t, size_t)>& body) {
  const size_t parts = std::max<size_t>(1, count * work / kPartWork);
  const size_t part = parts < pool.threads() ? (count + parts - 1) / parts : 1;
  pool.ParallelFor(count, (std::max<size_t>(part, 1) + multiple - 1) / multiple * multiple, body);
}

// Memory of the calling thread, whole cache lines of anything, good until its next call.
inline std::byte* Scratch(size_t bytes) {
  constexpr size_t kLine = 64;  // a vector that straddles two cache lines is loaded twice
  thread_local std::unique_ptr<std::byte[]> memory;
  thread_local size_t size = 0;
  if (size < bytes + kLine) {
    memory.reset();
    memory = std::make_unique_for_overwrite<std::byte[]>(bytes + kLine);
    size = bytes + kLine;
  }
  return memory.get() + -reinterpret_cast<uintptr_t>(memory.get()) % kLine;
}

constexpr size_t kElementWork = 4;  // of moving an element

template <const CpuLeaves& kLeaves>
void Embed(const EmbedArgs& a, ThreadPool& pool) {
  Share(pool, a.count, kElementWork * a.table.columns, 1,
        [&](size_t begin, size_t end) { kLeaves.embed(a, begin, end); });
}

template <const CpuLeaves& kLeaves>
void RopeKv(const RopeKvArgs& a, ThreadPool& pool) {
  const size_t rows = a.heads + 2 * a.batch.kv_heads;
  Share(pool, a.batch.tokens, kElementWork * rows * a.batch.head_dim, 1,
        [&](size_t begin, size_t end) { kLeaves.rope_kv(a, begin, end); });
}

// The encodings that the parts want, in memory of the calling thread.
inline ActivationGroups LayOut(const GemmArgs& a, bool has_bf16_dots) {
  const size_t records = GroupsOf(a.inputs()) * a.tokens;
  size_t ends[std::size(kEveryActivationFormat)] = {}, bytes = 0;  // 0: not wanted
  for (const GemmPart& part : a.parts) {
    const ActivationFormat format = ActivationsOf(FormatOf(part.weights), has_bf16_dots);
    size_t& end = ends[static_cast<size_t>(format)];
    if (end == 0) end = bytes += GroupBytes(format) * records;
  }
  std::byte* const memory = Scratch(bytes);
  ActivationGroups out{.tokens = a.tokens};
  for (const ActivationFormat format : kEveryActivationFormat) {
    const auto i = static_cast<size_t>(format);
    if (ends[i] > 0) out.of[i] = memory + ends[i] - GroupBytes(format) * records;
  }
  return out;
}

// Encoding a few tokens takes a thread less than waiting for another that does.
inline bool IsEncodedAlone(const GemmArgs& a) { return a.tokens * a.inputs() <= 16 << 10; }

// That are shared out: those of all parts, of a gated pair those of one.
inline size_t SharedStrips(const GemmArgs& a) {
  CHECK(a.parts.size() <= GemmArgs::kMostParts);
  CHECK(!a.gated || (a.parts.size() == 2 && a.parts[0].weights.rows == a.parts[1].weights.rows));
  size_t strips = 0;
  for (const GemmPart& part : a.parts) {
    CHECK(part.weights.packed && part.weights.columns == a.inputs());
    strips += StripsOf(part.weights.rows);
  }
  return a.gated ? strips / 2 : strips;
}
inline size_t StripWork(const GemmArgs& a) { return kStripRows * a.inputs() * a.tokens * (a.gated ? 2 : 1); }

// Products whose activations each thread encodes for itself, [begin, end) of their strips counted through.
template <const CpuLeaves& kLeaves>
void GemmAlone(std::span<const GemmArgs* const> products, ThreadPool& pool) {
  std::vector<size_t> ends;  // of each product's strips
  size_t strips = 0, work = 0, grain = 1;
  for (const GemmArgs* a : products) {
    const size_t count = SharedStrips(*a);
    ends.push_back(strips += count);
    work += count * StripWork(*a);
    if (a->tokens > 1) grain = kLeaves.gemm_strips;
  }
  if (strips == 0) return;
  static std::atomic<uint64_t> calls = 0;
  const uint64_t call = ++calls;
  Share(pool, strips, work / strips, grain, [&, call](size_t begin, size_t end) {
    thread_local uint64_t encoded = 0;   // the call and
    thread_local size_t encoded_of = 0;  // its product whose activations this thread holds
    auto of = static_cast<size_t>(std::ranges::upper_bound(ends, begin) - ends.begin());
    for (; begin < end; ++of) {
      const GemmArgs& a = *products[of];
      const size_t first = of == 0 ? 0 : ends[of - 1], to = std::min(end, ends[of]);
      const ActivationGroups in = LayOut(a, kLeaves.has_bf16_dots);
      if (encoded != call || encoded_of != of) kLeaves.encode_activations(a, 0, a.tokens, in);
      encoded = call;
      encoded_of = of;
      kLeaves.gemm(a, in, begin - first, to - first);
      begin = to;
    }
  });
}

template <const CpuLeaves& kLeaves>
void Gemm(const GemmArgs& a, ThreadPool& pool) {
  if (a.tokens == 0) return;
  if (IsEncodedAlone(a) || pool.threads() == 1) {
    const GemmArgs* const one[] = {&a};
    return GemmAlone<kLeaves>(one, pool);
  }
  const size_t strips = SharedStrips(a), grain = a.tokens > 1 ? kLeaves.gemm_strips : 1;
  const ActivationGroups in = LayOut(a, kLeaves.has_bf16_dots);
  Share(pool, a.tokens, kElementWork * a.inputs(), 1,
        [&](size_t begin, size_t end) { kLeaves.encode_activations(a, begin, end, in); });
  Share(pool, strips, StripWork(a), grain,
        [&](size_t begin, size_t end) { kLeaves.gemm(a, in, begin, end); });
}

template <const CpuLeaves& kLeaves>
void GemmEach(std::span<const GemmArgs> products, ThreadPool& pool) {
  std::vector<const GemmArgs*> alone;
  for (const GemmArgs& a : products) {
    if (a.tokens == 0) continue;
    if (IsEncodedAlone(a)) {
      alone.push_back(&a);
    } else {
      Gemm<kLeaves>(a, pool);
    }
  }
  GemmAlone<kLeaves>(alone, pool);
}

// Each run by one thread, span after span.
template <const CpuLeaves& kLeaves>
void AttendByRuns(const PagedAttentionArgs& a, std::span<const AttentionRun> runs, size_t units,
                  size_t unit_work, ThreadPool& pool) {
  const size_t pitch = AttentionPartial{a.batch.head_dim}.pitch();
  Share(pool, units, unit_work, 1, [&](size_t begin, size_t end) {
    auto* partials = reinterpret_cast<float*>(Scratch(AttentionRun::kMostQueries * pitch * sizeof(float)));
    AttentionTotals totals;
    auto run = std::ranges::lower_bound(runs, begin, {}, &AttentionRun::unit);
    for (; run != runs.end() && run->unit < end; ++run) {
      for (size_t span = run->first_span; span < run->end_span(); ++span) {
        kLeaves.attend_span(a, *run, span, partials);
        kLeaves.merge_spans(a, *run, span, span + 1, partials, totals);
      }
    }
  });
}

// The spans of a run by any threads; they are merged when all are there.
template <const CpuLeaves& kLeaves>
void AttendBySpans(const PagedAttentionArgs& a, std::span<const AttentionRun> runs, size_t units,
                   size_t unit_work, ThreadPool& pool) {
  const size_t pitch = AttentionPartial{a.batch.head_dim}.pitch();
  auto* partials = reinterpret_cast<float*>(Scratch(units * pitch * sizeof(float)));
  const auto of_span = [&](const AttentionRun& run, size_t span) {
    return partials + (run.unit + (span - run.first_span) * run.count) * pitch;
  };
  Share(pool, units, unit_work, 1, [&](size_t begin, size_t end) {
    auto run = std::ranges::upper_bound(runs, begin, {}, &AttentionRun::unit) - 1;
    for (; run != runs.end() && run->unit < end; ++run) {
      for (size_t span = run->first_span; span < run->end_span(); ++span) {
        const size_t unit = run->unit + (span - run->first_span) * run->count;
        if (unit >= begin && unit < end) kLeaves.attend_span(a, *run, span, of_span(*run, span));
      }
    }
  });
  const size_t merge_work = 2 * a.batch.head_dim * (units / runs.size() + 1);
  Share(pool, runs.size(), merge_work, 1, [&](size_t begin, size_t end) {
    for (const AttentionRun& run : runs.subspan(begin, end - begin)) {
      AttentionTotals totals;
      kLeaves.merge_spans(a, run, run.first_span, run.end_span(), of_span(run, run.first_span), totals);
    }
  });
}

template <const CpuLeaves& kLeaves>
void PagedAttention(const PagedAttentionArgs& a, ThreadPool& pool) {
  const std::span<const AttentionRun> runs = AttentionRuns(a);
  if (runs.empty()) return;
  const size_t units = runs.back().unit + runs.back().units();
  const size_t largest = std::ranges::max(runs, {}, &AttentionRun::units).units();
  const size_t furthest = *std::max_element(a.batch.positions, a.batch.positions + a.batch.tokens);
  const size_t unit_work = 2 * std::min(kAttentionSpan, furthest + 1) * a.batch.head_dim;
  // A run that is much of the whole leaves the other threads idle at its end.
  constexpr size_t kRunsPerThread = 8, kMostPartials = 4 << 20;  // floats
  const bool is_uneven = pool.threads() > 1 && largest * kRunsPerThread * pool.threads() > units;
  const bool fits = units * AttentionPartial{a.batch.head_dim}.pitch() <= kMostPartials;
  const auto attend = is_uneven && fits ? AttendBySpans<kLeaves> : AttendByRuns<kLeaves>;
  attend(a, runs, units, unit_work, pool);
}

template <const CpuLeaves& kLeaves>
void AddNorm(const AddNormArgs& a, ThreadPool& pool) {
  Share(pool, a.tokens, kElementWork * a.width, 1,
        [&](size_t begin, size_t end) { kLeaves.add_norm(a, begin, end); });
}

template <const CpuLeaves& kLeaves>
void CapLogits(const CapLogitsArgs& a, ThreadPool& pool) {
  constexpr size_t kTanhWork = 32, kVector = 16;
  Share(pool, a.count, kTanhWork, kVector,
        [&](size_t begin, size_t end) { kLeaves.cap_logits(a, begin, end); });
}

template <const CpuLeaves& kLeaves>
void RouteExperts(const RouteExpertsArgs& a, ThreadPool& pool) {
  CHECK(a.per_token > 0 && a.per_token <= a.experts, a.per_token, " of ", a.experts, " experts");
  Share(pool, a.tokens, kElementWork * a.experts * (a.per_token + 1), 1,
        [&](size_t begin, size_t end) { RouteTokens(a, kLeaves.softmax_weights, begin, end); });
}

template <const CpuLeaves& kLeaves>
OpTable MakeCpuTable(std::string_view name) {
  return {.name = name,
          .embed = Embed<kLeaves>,
          .layout = LayOutStrips,
          .pack = PackStrips,
          .gemm = Gemm<kLeaves>,
          .gemm_each = GemmEach<kLeaves>,
          .rope_kv = RopeKv<kLeaves>,
          .paged_attention = PagedAttention<kLeaves>,
          .add_norm = AddNorm<kLeaves>,
          .cap_logits = CapLogits<kLeaves>,
          .softmax_weights = kLeaves.softmax_weights,
          .route_experts = RouteExperts<kLeaves>};
}

}  // namespace
}  // namespace terrace
