// What the same-bits contract costs: the shipped kernels against rivals that may add in any order, in turns.
//   bazel run -c opt //tests/bench:contract_cost
// Shapes are those of a Llama model of 135 million weights. One thread, whose own running time is taken; of
// work for two threads, the larger of the parts.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <string>
#include <vector>

#include "base/rng.h"
#include "base/status.h"
#include "kernels/cpu_leaves.h"
#include "kernels/op_table.h"
#include "tests/bench/free_order.h"
#include "tests/bench/timings.h"
#include "worker/formats/weight_encoding.h"

namespace terrace {
namespace {

constexpr size_t kHidden = 576, kFfn = 1536, kHeads = 9, kKvHeads = 3, kHeadDim = 64, kLayers = 30,
                 kVocabulary = 49152, kBlockTokens = 16;

std::vector<float> RandomFloats(size_t count, uint64_t seed) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>(RandomUniform(seed, i) * 2 - 1);
  return out;
}

struct Matrix {
  Matrix(DType dtype, size_t rows, size_t columns, uint64_t seed) {
    const std::vector<float> values = RandomFloats(rows * columns, seed);
    WeightMatrix matrix{.dtype = dtype, .rows = rows, .columns = columns};
    std::vector<std::byte> bytes(rows * matrix.RowBytes());
    EncodeWeights(dtype, values, bytes);
    matrix.data = bytes.data();
    ThreadPool one(1);
    const GemmWeights layout = CpuOps().layout(matrix, ComputeType::kAuto, one);
    memory.resize(layout.bytes + 64);
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    view = CpuOps().pack(matrix, layout, memory.data() + -address % 64, one);
  }
  std::vector<std::byte> memory;
  GemmWeights view;  // borrows `memory`
};

// Sequences of `tokens` new positions each after `past` older ones.
struct Attention {
  Attention(size_t sequences, size_t new_tokens, size_t past)
      : tokens(sequences * new_tokens),
        q(RandomFloats(tokens * kHeads * kHeadDim, 1)),
        out(q.size()),
        positions(tokens),
        tables(tokens) {
    const size_t blocks = (past + new_tokens + kBlockTokens - 1) / kBlockTokens;
    table.resize(sequences * blocks);
    std::iota(table.begin(), table.end(), 0);
    for (size_t i = table.size(); i > 1; --i) std::swap(table[i - 1], table[RandomBits(2, i) % i]);
    for (size_t i = 0; i < tokens; ++i) {
      positions[i] = static_cast<uint32_t>(past + i % new_tokens);
      tables[i] = table.data() + i / new_tokens * blocks;
    }
    const size_t floats = table.size() * kBlockTokens * kKvHeads * kHeadDim;
    keys = RandomFloats(floats + 16, 3);
    values = RandomFloats(floats + 16, 4);
  }
  PagedAttentionArgs Args() {
    const auto rows = [](std::vector<float>& memory) {
      const auto address = reinterpret_cast<uintptr_t>(memory.data());
      return KvRows{.data = reinterpret_cast<std::byte*>((address + 63) / 64 * 64)};
    };
    return {.batch = {.positions = positions.data(),
                      .block_tables = tables.data(),
                      .tokens = tokens,
                      .kv_heads = kKvHeads,
                      .head_dim = kHeadDim,
                      .blocks = table.size(),
                      .block_tokens = kBlockTokens},
            .q = q.data(),
            .out = out.data(),
            .kv = {.keys = rows(keys), .values = rows(values)},
            .heads = kHeads,
            .scale = 1 / std::sqrt(static_cast<float>(kHeadDim))};
  }
  size_t tokens;
  std::vector<float> q, out, keys, values;
  std::vector<uint32_t> positions;
  std::vector<const int32_t*> tables;
  std::vector<int32_t> table;
};

// Ends attention that was split over [0, 1, ..., parts) of the positions: the merge that makes its bits
// depend on the split.
void Merge(const PagedAttentionArgs& a, const std::vector<std::vector<float>>& outs,
           const std::vector<std::vector<SoftmaxPart>>& parts) {
  for (size_t row = 0; row < a.batch.tokens * a.heads; ++row) {
    float largest = parts[0][row].largest, sum = 0;
    for (const auto& part : parts) largest = std::max(largest, part[row].largest);
    float* out = a.out + row * kHeadDim;
    std::fill_n(out, kHeadDim, 0.0f);
    for (size_t i = 0; i < parts.size(); ++i) {
      const float weight = std::exp(parts[i][row].largest - largest);
      sum += parts[i][row].sum * weight;
      for (size_t d = 0; d < kHeadDim; ++d) out[d] += outs[i][row * kHeadDim + d] * weight;
    }
    for (size_t d = 0; d < kHeadDim; ++d) out[d] /= sum;
  }
}

// Attention over all positions at once, by one thread.
void AttendAtOnce(const PagedAttentionArgs& a) {
  static std::vector<std::vector<float>> outs(1);
  static std::vector<std::vector<SoftmaxPart>> parts(1);
  outs[0].resize(a.batch.tokens * a.heads * kHeadDim);
  parts[0].resize(a.batch.tokens * a.heads);
  const size_t last = size_t{*std::max_element(a.batch.positions, a.batch.positions + a.batch.tokens)} + 1;
  FreeOrderAttention(a, 0, last, outs[0].data(), parts[0].data());
  Merge(a, outs, parts);
}

// One of two threads' part of a decode, as cpu_table.h shares it out: half of the spans, and merging them
// all.
void AttendHalf(const CpuLeaves& leaves, const PagedAttentionArgs& a) {
  const std::span<const AttentionRun> runs = AttentionRuns(a);
  const size_t units = runs.back().unit + runs.back().units(), pitch = AttentionPartial{kHeadDim}.pitch();
  static std::vector<float> memory;
  memory.resize(units * pitch);
  for (const AttentionRun& run : runs) {
    for (size_t span = 0; span < run.spans; ++span) {
      const size_t unit = run.unit + span * run.count;
      if (unit < (units + 1) / 2) leaves.attend_span(a, run, span, memory.data() + unit * pitch);
    }
  }
  for (const AttentionRun& run : runs) {
    AttentionTotals totals;
    leaves.merge_spans(a, run, 0, run.spans, memory.data() + run.unit * pitch, totals);
  }
}

// A set of kernels to run a model with.
struct Kernels {
  const OpTable& ops;
  bool is_special;  // FreeOrderAttention is taken

  void Attend(const PagedAttentionArgs& args, ThreadPool& pool) const {
    is_special ? AttendAtOnce(args) : ops.paged_attention(args, pool);
  }
};

double ThreadSeconds() { return Seconds(ThreadTime()); }

double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

// Runs the work with each set in turns, in rounds whose order rotates; the ratio is taken within a round,
// where the machine was the same.
class Comparison {
 public:
  explicit Comparison(int rounds) : rounds_(rounds) {
    sets_.push_back({"shipped", {CpuOps(), false}});
    sets_.push_back({"same sources, -ffast-math", {FreeOrderCpuOps(), false}});
    if (HasFreeOrderLeaves()) sets_.push_back({"attention at once", {FreeOrderCpuOps(), true}});
    std::printf(
        "| work | contract | free order | ratio | middle half of the ratios | fastest rival |\n"
        "| --- | --- | --- | --- | --- | --- |\n");
  }

  // `out` is compared between the sets: a rival that is wrong is not a rival.
  void Run(const std::string& name, const std::vector<float>& out,
           const std::function<void(const Kernels&)>& work) {
    std::vector<std::vector<double>> times(sets_.size());
    work(sets_[0].kernels);
    const std::vector<float> want = out;
    for (const Set& set : sets_) {
      work(set.kernels);
      for (size_t i = 0; i < out.size(); ++i) {
        CHECK(std::abs(out[i] - want[i]) <= 1e-3f * (1 + std::abs(want[i])), name, ", ", set.name,
              ": element ", i, " is ", out[i], ", not ", want[i]);
      }
    }
    const double start = ThreadSeconds();
    work(sets_[0].kernels);
    const auto repeats = static_cast<size_t>(std::max(1.0, 0.004 / (ThreadSeconds() - start)));
    for (int round = 0; round < rounds_; ++round) {
      for (size_t i = 0; i < sets_.size(); ++i) {
        const size_t set = (i + static_cast<size_t>(round)) % sets_.size();
        const double begin = ThreadSeconds();
        for (size_t k = 0; k < repeats; ++k) work(sets_[set].kernels);
        times[set].push_back((ThreadSeconds() - begin) / static_cast<double>(repeats));
      }
    }
    size_t best = 1;
    for (size_t set = 2; set < sets_.size(); ++set) {
      if (Quantile(times[set], 0.5) < Quantile(times[best], 0.5)) best = set;
    }
    std::vector<double> ratios;
    for (size_t i = 0; i < times[0].size(); ++i) ratios.push_back(times[0][i] / times[best][i]);
    std::printf("| %s | %.1f us | %.1f us | %.3f | %.3f to %.3f | %s |\n", name.c_str(),
                1e6 * Quantile(times[0], 0.5), 1e6 * Quantile(times[best], 0.5), Quantile(ratios, 0.5),
                Quantile(ratios, 0.25), Quantile(ratios, 0.75), sets_[best].name);
    std::fflush(stdout);
  }

 private:
  struct Set {
    const char* name;
    Kernels kernels;
  };
  const int rounds_;
  std::vector<Set> sets_;
};

// The products, norms, activations and attention of one forward pass; RoPE and writing the KV are the same
// code for all.
struct Model {
  struct Layer {
    Matrix qkv, output, gate, up, down;
  };
  Model() {
    for (uint64_t i = 0; i < kLayers; ++i) {
      layers.push_back({{DType::kF16, kHidden + 2 * kKvHeads * kHeadDim, kHidden, 8 * i},
                        {DType::kF16, kHidden, kHidden, 8 * i + 1},
                        {DType::kF16, kFfn, kHidden, 8 * i + 2},
                        {DType::kF16, kFfn, kHidden, 8 * i + 3},
                        {DType::kF16, kHidden, kFfn, 8 * i + 4}});
    }
  }
  void Forward(const Kernels& k, Attention& attention, size_t logits, ThreadPool& pool) {
    const size_t tokens = attention.tokens;
    hidden.assign(tokens * kHidden, 0.5f);
    wide.resize(tokens * std::max(kFfn, kHidden + 2 * kKvHeads * kHeadDim));
    out.resize(logits * kVocabulary);
    const auto multiply = [&](const std::vector<float>& x, bool norm, std::initializer_list<GemmPart> parts,
                              size_t rows, bool gated = false) {
      k.ops.gemm({.x = x.data(),
                  .norm = norm ? ones.data() : nullptr,
                  .norm_epsilon = 1e-5f,
                  .tokens = rows,
                  .parts = {parts.begin(), parts.size()},
                  .gated = gated},
                 pool);
    };
    for (const Layer& layer : layers) {
      multiply(hidden, true, {{layer.qkv.view, wide.data()}}, tokens);
      k.Attend(attention.Args(), pool);
      multiply(attention.out, false, {{layer.output.view, hidden.data(), true}}, tokens);
      multiply(hidden, true, {{layer.gate.view, wide.data()}, {layer.up.view, nullptr}}, tokens, true);
      multiply(wide, false, {{layer.down.view, hidden.data(), true}}, tokens);
    }
    multiply(hidden, true, {{embedding.view, out.data()}}, logits);
  }
  std::vector<Layer> layers;
  Matrix embedding{DType::kF16, kVocabulary, kHidden, 1000};
  std::vector<float> ones = std::vector<float>(kHidden, 1.0f);
  std::vector<float> hidden, wide, out;
};

void Main(int rounds) {
  ThreadPool one(1);
  Comparison comparison(rounds);
  for (const auto& [outputs, inputs] : {std::pair(kFfn, kHidden), std::pair(kHidden, kFfn)}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
      const Matrix weights(dtype, outputs, inputs, /*seed=*/5);
      for (const size_t tokens : {1, 4, 16, 256}) {
        const auto x = RandomFloats(tokens * inputs, /*seed=*/6);
        std::vector<float> out(tokens * outputs);
        comparison.Run(
            Concat("gemm ", outputs, " x ", inputs, " ", Info(dtype).name, ", ", tokens, " tokens"), out,
            [&](const Kernels& kernels) {
              const GemmPart part{.weights = weights.view, .out = out.data()};
              kernels.ops.gemm({.x = x.data(), .tokens = tokens, .parts = {&part, 1}}, one);
            });
      }
    }
  }
  const auto attend = [&](const std::string& name, Attention attention) {
    comparison.Run(name, attention.out,
                   [&](const Kernels& kernels) { kernels.Attend(attention.Args(), one); });
  };
  attend("attention, decode at 512", Attention(1, 1, 511));
  attend("attention, decode at 4096", Attention(1, 1, 4095));
  attend("attention, 256 tokens at 0", Attention(1, 256, 0));
  attend("attention, 256 tokens at 1024", Attention(1, 256, 1024));
  Model model;
  const auto forward = [&](const std::string& name, Attention attention, size_t logits) {
    model.Forward({CpuOps(), false}, attention, logits, one);  // sizes model.out
    comparison.Run(name, model.out, [&](const Kernels& k) { model.Forward(k, attention, logits, one); });
  };
  forward("135M model, decode of 1 at 512", Attention(1, 1, 511), 1);
  forward("135M model, decode of 8 at 512", Attention(8, 1, 511), 8);
  forward("135M model, prefill of 256", Attention(1, 256, 0), 1);
  if (!HasFreeOrderLeaves()) return;
  for (const size_t positions : {512, 4096}) {
    Attention attention(1, 1, positions - 1);
    std::vector<std::vector<float>> outs(2, attention.out);
    std::vector<std::vector<SoftmaxPart>> parts(2, std::vector<SoftmaxPart>(kHeads));
    FreeOrderAttention(attention.Args(), positions / 2, positions, outs[1].data(), parts[1].data());
    comparison.Run(Concat("attention, decode at ", positions, ", part of one of two threads"), {},
                   [&](const Kernels& kernels) {
                     const PagedAttentionArgs args = attention.Args();
                     if (!kernels.is_special) {
                       AttendHalf(&kernels.ops == &CpuOps() ? kAvx512Leaves : FreeOrderLeaves(), args);
                     } else {
                       FreeOrderAttention(args, 0, positions / 2, outs[0].data(), parts[0].data());
                       Merge(args, outs, parts);
                     }
                   });
  }
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Main(argc > 1 ? std::max(1, std::atoi(argv[1])) : 15);
  return 0;
}
