// The kernels of a step, one by one, at the shapes of Llama 3.1 8B. What memory gives them rotates, so that
// the device's cache (50 MB) holds little of what a call reads.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "kernels/activation/gate_mul_cuda.h"
#include "kernels/attention/decode_attention_cuda.h"
#include "kernels/attention/prefill_attention_cuda.h"
#include "kernels/copy/kv_copy_cuda.h"
#include "kernels/embed/embed_cuda.h"
#include "kernels/gemm/dequantize_cuda.h"
#include "kernels/gemm/stream_gemm_cuda.h"
#include "kernels/norm/add_norm_cuda.h"
#include "kernels/norm/rms_norm_cuda.h"
#include "kernels/quant/quantize_rows_cuda.h"
#include "kernels/rope/rope_frequencies.h"
#include "kernels/rope/rope_kv_cuda.h"
#include "kernels/sample/cap_logits_cuda.h"
#include "kernels/sample/sample_cuda.h"
#include "tests/gpu/bench_arrays.h"
#include "tests/gpu/bench_model.h"
#include "worker/cuda/cublas_gemm.h"

namespace terrace {
namespace {

constexpr uint32_t kHeads = 32, kKvHeads = 8, kHeadDim = 128, kHidden = 4096, kFfn = 14336, kVocab = 128256;
constexpr uint32_t kQkvWidth = (kHeads + 2 * kKvHeads) * kHeadDim;
// Query heads of so many elements, and of keys and values: no more than there is memory for.
constexpr uint32_t HeadsOf(uint32_t head_dim) { return kHeads * kHeadDim / std::max(head_dim, kHeadDim); }
constexpr uint32_t KvHeadsOf(uint32_t head_dim) { return HeadsOf(head_dim) * kKvHeads / kHeads; }
constexpr uint32_t kLog2BlockTokens = 4, kBlockTokens = 1u << kLog2BlockTokens;

template <typename T>
StatusOr<CudaBuffer> Upload(const std::vector<T>& values, const char* what) {
  ASSIGN_OR_RETURN(CudaBuffer out, CudaBuffer::Device(values.size() * sizeof(T), what));
  RETURN_IF_CUDA_ERROR(cudaMemcpy(out.data(), values.data(), out.bytes(), cudaMemcpyHostToDevice));
  return out;
}

StatusOr<CudaBuffer> RandomBF16(uint64_t count, uint64_t seed, cudaStream_t stream) {
  ASSIGN_OR_RETURN(CudaBuffer out, CudaBuffer::Device(count * sizeof(uint16_t), "bf16 values"));
  RETURN_IF_CUDA_ERROR(FillBF16(out.as<uint16_t>(), count, {.seed = seed}, stream));
  return out;
}

StatusOr<CudaBuffer> RandomF32(uint64_t count, const NormalFill& fill, cudaStream_t stream) {
  ASSIGN_OR_RETURN(CudaBuffer out, CudaBuffer::Device(count * sizeof(float), "f32 values"));
  RETURN_IF_CUDA_ERROR(FillF32(out.as<float>(), count, fill, stream));
  return out;
}

// NaN in every float format.
StatusOr<CudaBuffer> Poisoned(uint64_t bytes) {
  ASSIGN_OR_RETURN(CudaBuffer out, CudaBuffer::Device(bytes, "outputs"));
  RETURN_IF_CUDA_ERROR(cudaMemset(out.data(), 0xff, bytes));
  return out;
}

StatusOr<CudaBuffer> Zeroed(uint64_t bytes) {
  ASSIGN_OR_RETURN(CudaBuffer out, CudaBuffer::Device(bytes, "zeros"));
  RETURN_IF_CUDA_ERROR(cudaMemset(out.data(), 0, bytes));
  return out;
}

// Calls that move `bytes` each, for about 2 ms at `rate`, a multiple of `rotation`.
uint32_t CallsFor(double bytes, double rate, uint32_t rotation) {
  const double calls = std::clamp(2e-3 * rate / bytes, 4.0, 512.0);
  return (static_cast<uint32_t>(calls) + rotation - 1) / rotation * rotation;
}

// ---- Products

struct Product {
  const char* name;
  std::vector<const GpuMatrix*> matrices;
  GpuGemmOut kind;
};

struct ProductOutputs {
  CudaBuffer bf16, f32;
  void* Of(GpuGemmOut kind) const {
    return kind == GpuGemmOut::kBF16 || kind == GpuGemmOut::kGated ? static_cast<void*>(bf16.data())
                                                                   : f32.data();
  }
};

class Products {
 public:
  static constexpr uint32_t kMostTokens = 64;

  static Status Run(BenchContext& bench) {
    Products products(bench);
    ASSIGN_OR_RETURN(products.x_, RandomBF16(uint64_t{kMostTokens} * kFfn, 11, bench.stream));
    ASSIGN_OR_RETURN(products.outputs_.bf16, Poisoned(uint64_t{kMostTokens} * 2 * kFfn * sizeof(uint16_t)));
    // Zeros: two of the products add to it.
    ASSIGN_OR_RETURN(products.outputs_.f32, Zeroed(uint64_t{kMostTokens} * kVocab * sizeof(float)));
    ASSIGN_OR_RETURN(products.cublas_, CublasLt::Create());
    for (const GpuFormat format : {GpuFormat::kBF16, GpuFormat::kE4M3, GpuFormat::kW4, GpuFormat::kW8}) {
      const std::string name = Concat("gemm ", NameOf(format));
      if (!bench.report.HasTime(name)) continue;
      RETURN_IF_ERROR(bench.report.SkipOr(name, products.Format(format)));
    }
    bench.weights.Drop(GpuFormat::kW8);
    products.Ratios();
    return {};
  }

 private:
  explicit Products(BenchContext& bench) : bench_(bench) {}

  std::vector<uint32_t> TokensOf(GpuFormat format) const {
    if (bench_.is_quick) return {1, 16, 64};
    const bool is_compared = format == GpuFormat::kBF16 || format == GpuFormat::kW4;
    return is_compared ? std::vector<uint32_t>{1, 4, 8, 16, 32, 64} : std::vector<uint32_t>{1, 8, 16, 32, 64};
  }

  Status Format(GpuFormat format) {
    ASSIGN_OR_RETURN(const CudaWeights* weights, bench_.weights.Of(format));
    Product qkv = {"qkv", {}, GpuGemmOut::kBF16}, output = {"output", {}, GpuGemmOut::kAddF32},
            gate_up = {"gate_up", {}, GpuGemmOut::kGated}, down = {"down", {}, GpuGemmOut::kAddF32};
    for (const CudaLayer& layer : weights->layers) {
      qkv.matrices.push_back(&layer.qkv);
      output.matrices.push_back(&layer.output);
      gate_up.matrices.push_back(&layer.gate_up);
      down.matrices.push_back(&layer.down);
    }
    const Product head = {"head", {&weights->head}, GpuGemmOut::kF32};
    for (const uint32_t tokens : TokensOf(format)) {
      const std::string name =
          Concat("gemm ", NameOf(format), ", ", tokens, tokens == 1 ? " token" : " tokens");
      if (!bench_.report.HasTime(name)) continue;
      double seconds = 0, limit = 0;
      for (const Product* product : {&qkv, &output, &gate_up, &down}) {
        ASSIGN_OR_RETURN(const double each, One(name, *product, tokens));
        seconds += each;
        limit += LimitOf(*product->matrices[0], tokens);
      }
      RETURN_IF_ERROR(One(name, head, tokens).status());
      layers_[{format, tokens}] = seconds;
      bench_.report.Add({.name = name + ": a layer",
                         .value = seconds * 1e6,
                         .unit = "us",
                         .fraction = limit / seconds,
                         .limit = "copy, matmul",
                         .goal = GoalOf(format, tokens)});
      if (format == GpuFormat::kBF16) {
        RETURN_IF_ERROR(
            bench_.report.SkipOr(name, Library({&qkv, &output, &gate_up, &down}, tokens, seconds)));
      }
    }
    return {};
  }

  static BenchGoal GoalOf(GpuFormat format, uint32_t tokens) {
    switch (format) {
      case GpuFormat::kBF16:
        return BenchGoal::Fraction(0.90);
      case GpuFormat::kE4M3:
      case GpuFormat::kW8:
        return BenchGoal::Fraction(0.85);
      case GpuFormat::kW4:  // beyond 16 the ratio to bf16 is the goal
        return tokens <= 16 ? BenchGoal::Fraction(0.75) : BenchGoal();
      case GpuFormat::kSparse:  // bench_sparse.cc
        break;
    }
    return {};
  }

  double LimitOf(const GpuMatrix& m, uint32_t tokens) const {
    const double bytes = static_cast<double>(BytesOf(m)) + 2.0 * tokens * (m.columns + m.rows);
    return std::max(bytes / bench_.limits.copy, 2.0 * tokens * m.rows * m.columns / bench_.limits.matmul);
  }

  QueueCall Calls(const Product& product, uint32_t tokens, const StreamGemmShape& shape) const {
    return [&product, tokens, &shape, this](uint32_t i, const CudaLaunch& how) {
      return StreamGemmCuda({.x = x_.as<uint16_t>(),
                             .tokens = tokens,
                             .weights = *product.matrices[i % product.matrices.size()],
                             .out = outputs_.Of(product.kind),
                             .kind = product.kind},
                            shape, how);
    };
  }

  // Median seconds, with the fastest shape there is.
  StatusOr<double> One(const std::string& name, const Product& product, uint32_t tokens) {
    const GpuMatrix& m = *product.matrices[0];
    const auto count = static_cast<uint32_t>(product.matrices.size());
    const auto bytes = static_cast<double>(BytesOf(m));
    StreamGemmShape best = DefaultStreamGemmShape(m.rows, m.columns, m.format, tokens);
    double best_seconds = INFINITY;
    for (const StreamGemmShape& shape : StreamGemmShapes(tokens)) {
      const uint32_t calls = std::min(count, static_cast<uint32_t>(2e8 / bytes) + 4);
      const auto timing = TimeCalls(bench_.stream, {.calls = calls, .rounds = 2, .warm_seconds = 0},
                                    Calls(product, tokens, shape));
      if (!timing.ok()) {
        if (timing.status().code() == StatusCode::kUnimplemented) continue;
        return timing.status();
      }
      if (timing->seconds >= best_seconds) continue;
      best = shape;
      best_seconds = timing->seconds;
    }
    const CallPlan plan = {
        .calls = CallsFor(bytes, bench_.limits.copy, count), .rounds = bench_.rounds, .warm_seconds = 0.004};
    ASSIGN_OR_RETURN(const Timing timing, TimeCalls(bench_.stream, plan, Calls(product, tokens, best)));
    bench_.report.Add({.name = Concat(name, ": ", product.name),
                       .value = timing.seconds * 1e6,
                       .unit = "us",
                       .spread = timing.spread,
                       .fraction = LimitOf(m, tokens) / timing.seconds,
                       .limit = "copy, matmul"});
    const uint64_t width = product.kind == GpuGemmOut::kGated ? m.rows / 2 : m.rows;
    const bool is_bf16 = product.kind == GpuGemmOut::kBF16 || product.kind == GpuGemmOut::kGated;
    RETURN_IF_ERROR(
        is_bf16 ? CheckFinite(outputs_.bf16.as<uint16_t>(), tokens * width, name.c_str(), bench_.stream)
                : CheckFinite(outputs_.f32.as<float>(), tokens * width, name.c_str(), bench_.stream));
    return timing.seconds;
  }

  // The same layer through cuBLASLt, each product with its fastest algorithm, the gate's activation left out.
  Status Library(const std::vector<const Product*>& products, uint32_t tokens, double own_seconds) {
    double seconds = 0;
    for (const Product* product : products) {
      std::vector<CublasGemm> gemms;
      for (const GpuMatrix* m : product->matrices) {
        const bool adds = product->kind == GpuGemmOut::kAddF32;
        gemms.push_back({.x = x_.data(),
                         .tokens = tokens,
                         .weights = m->codes,
                         .rows = m->rows,
                         .columns = m->columns,
                         .out = outputs_.Of(product->kind),
                         .out_is_f32 = adds,
                         .add_to_out = adds});
      }
      const std::span few = std::span(gemms).first(std::min<size_t>(gemms.size(), 6));
      RETURN_IF_ERROR(cublas_->Tune(few, bench_.stream).status());
      Status failed;
      const CallPlan plan = {
          .calls = static_cast<uint32_t>(gemms.size()), .rounds = 3, .warm_seconds = 0.004};
      ASSIGN_OR_RETURN(const Timing timing,
                       TimeCalls(bench_.stream, plan, [&](uint32_t i, const CudaLaunch& how) {
                         if (Status status = cublas_->Run(gemms[i], how.stream); !status.ok())
                           failed = status;
                         return cudaSuccess;
                       }));
      RETURN_IF_ERROR(failed);
      seconds += timing.seconds;
    }
    const std::string name = Concat("cuBLASLt bf16, ", tokens, tokens == 1 ? " token" : " tokens");
    bench_.report.Add({.name = name + ": a layer", .value = seconds * 1e6, .unit = "us"});
    bench_.report.Add({.name = name + ": its time to ours", .value = seconds / own_seconds, .unit = ""});
    return {};
  }

  void Ratios() {
    for (const auto& [key, seconds] : layers_) {
      const auto& [format, tokens] = key;
      const auto bf16 = layers_.find({GpuFormat::kBF16, tokens});
      if (format != GpuFormat::kW4 || bf16 == layers_.end()) continue;
      bench_.report.Add(
          {.name = Concat("gemm int4, ", tokens, tokens == 1 ? " token" : " tokens", ": times bf16's speed"),
           .value = bf16->second / seconds,
           .unit = "",
           .goal = BenchGoal::AtLeast(tokens <= 16   ? 3.3
                                      : tokens <= 32 ? 2.3
                                                     : 1.6)});
    }
  }

  BenchContext& bench_;
  CudaBuffer x_;
  ProductOutputs outputs_;
  std::unique_ptr<CublasLt> cublas_;
  std::map<std::pair<GpuFormat, uint32_t>, double> layers_;
};

// ---- Attention

// Keys and values of one layer, 512 Ki positions: 2 GiB in bf16.
class AttentionPool {
 public:
  static constexpr uint32_t kBlocks = 32768;
  static constexpr uint64_t kRows = uint64_t{kKvHeads} * kBlocks * kBlockTokens;
  static constexpr uint64_t kElements = kRows * kHeadDim;

  static StatusOr<AttentionPool> Make(cudaStream_t stream) {
    AttentionPool out;
    ASSIGN_OR_RETURN(out.keys_, RandomBF16(kElements, 21, stream));
    ASSIGN_OR_RETURN(out.values_, RandomBF16(kElements, 22, stream));
    ASSIGN_OR_RETURN(out.scales_,
                     RandomF32(2 * kRows, {.mean = 0.02f, .deviation = 0.002f, .seed = 23}, stream));
    std::vector<int32_t> order(kBlocks);
    std::iota(order.begin(), order.end(), 0);
    ASSIGN_OR_RETURN(out.in_order_, Upload(order, "block table"));
    std::shuffle(order.begin(), order.end(), std::minstd_rand(1));
    ASSIGN_OR_RETURN(out.shuffled_, Upload(order, "block table"));
    return out;
  }

  KvLayer Layer(KvDType dtype) const {
    KvLayer layer = {.dtype = dtype, .keys = {.data = keys_.data()}, .values = {.data = values_.data()}};
    if (HasScales(dtype))
      layer.keys.scales = scales_.as<float>(), layer.values.scales = layer.keys.scales + kRows;
    return layer;
  }
  // Sequences of `context` positions, as many as the pool holds.
  GpuBatch Batch(uint32_t context, bool is_shuffled, uint32_t head_dim = kHeadDim) const {
    return {.block_tables = (is_shuffled ? shuffled_ : in_order_).as<int32_t>(),
            .table_pitch = context / kBlockTokens,
            .kv_heads = KvHeadsOf(head_dim),
            .head_dim = head_dim,
            .blocks = kBlocks,
            .log2_block_tokens = kLog2BlockTokens};
  }
  // The same memory as rows of codes: bytes as they come, of fp8 without NaN.
  Status BecomeCodes(KvDType dtype, cudaStream_t stream) {
    const uint8_t mask = dtype == KvDType::kFp8 ? 0xbf : 0xff;  // below 2
    RETURN_IF_CUDA_ERROR(FillBytes(keys_.data(), kElements, 24, stream, mask));
    RETURN_IF_CUDA_ERROR(FillBytes(values_.data(), kElements, 25, stream, mask));
    return {};
  }

 private:
  CudaBuffer keys_, values_, scales_, in_order_, shuffled_;
};

struct DecodeCase {
  uint32_t count, context;
  KvDType dtype = KvDType::kBF16;
  bool is_shuffled = true;
  BenchGoal goal = BenchGoal::Fraction(0.95);
  uint32_t window = 0;
  float softcap = 0;
  uint32_t head_dim = kHeadDim;
};

std::string HeadText(uint32_t head_dim) {
  return head_dim == kHeadDim ? "" : Concat(", head_dim ", head_dim);
}

std::string SwitchesText(uint32_t window, float softcap) {
  return Concat(window > 0 ? Concat(", window ", window) : "", softcap > 0 ? ", capped" : "");
}

Status DecodeAttention(BenchContext& bench, const AttentionPool& pool, const CudaBuffer& q,
                       const DecodeCase& what) {
  const std::string name = Concat("decode attention ", KvDTypeName(what.dtype), ", ", what.count, " x ",
                                  what.context, what.is_shuffled ? "" : ", blocks in order",
                                  HeadText(what.head_dim), SwitchesText(what.window, what.softcap));
  if (!bench.report.HasTime(name)) return {};
  const uint32_t head_dim = what.head_dim, heads = HeadsOf(head_dim), kv_heads = KvHeadsOf(head_dim);
  const uint32_t sequences = AttentionPool::kBlocks * kBlockTokens / what.context;
  const uint32_t turns = sequences / what.count;  // of a call's sequences among the pool's
  const uint32_t spans = (what.context + kGpuAttentionSpan - 1) / kGpuAttentionSpan;
  std::vector<uint32_t> rows(sequences);
  std::iota(rows.begin(), rows.end(), 0);
  ASSIGN_OR_RETURN(const CudaBuffer sequence_rows, Upload(rows, "sequences"));
  ASSIGN_OR_RETURN(const CudaBuffer positions,
                   Upload(std::vector<uint32_t>(what.count, what.context - 1), "positions"));
  ASSIGN_OR_RETURN(const CudaBuffer out,
                   Poisoned(uint64_t{what.count} * heads * head_dim * sizeof(uint16_t)));
  ASSIGN_OR_RETURN(const CudaBuffer partials,
                   Poisoned(GpuAttentionPartialFloats(what.count, heads, head_dim, spans) * sizeof(float)));
  ASSIGN_OR_RETURN(const CudaBuffer arrived, Zeroed(uint64_t{what.count} * kv_heads * sizeof(uint32_t)));
  GpuBatch batch = pool.Batch(what.context, what.is_shuffled, head_dim);
  batch.tokens = what.count;
  batch.positions = positions.as<uint32_t>();
  const double row_bytes =
      head_dim * KvElementBytes(what.dtype) + (HasScales(what.dtype) ? sizeof(float) : 0);
  const uint32_t seen = what.window > 0 ? std::min(what.window, what.context) : what.context;
  const double bytes = 2.0 * what.count * seen * kv_heads * row_bytes;
  const CallPlan plan = {.calls = CallsFor(bytes, bench.limits.copy, turns), .rounds = bench.rounds};
  const auto timing = TimeCalls(bench.stream, plan, [&](uint32_t i, const CudaLaunch& how) {
    batch.sequences = sequence_rows.as<uint32_t>() + i % turns * what.count;
    return DecodeAttentionCuda({.batch = batch,
                                .q = q.as<uint16_t>(),
                                .q_pitch = kQkvWidth,
                                .out = out.as<uint16_t>(),
                                .kv = pool.Layer(what.dtype),
                                .heads = heads,
                                .scale = 1 / std::sqrt(static_cast<float>(head_dim)),
                                .window = what.window,
                                .softcap = what.softcap,
                                .count = what.count,
                                .most_spans = spans,
                                .partials = partials.as<float>(),
                                .arrived = arrived.as<uint32_t>()},
                               how);
  });
  if (!timing.ok()) return bench.report.SkipOr(name, timing.status());
  bench.report.Add({.name = name,
                    .value = timing->seconds * 1e6,
                    .unit = "us",
                    .spread = timing->spread,
                    .fraction = bytes / timing->seconds / bench.limits.copy,
                    .limit = "copy",
                    .goal = what.goal});
  return CheckFinite(out.as<uint16_t>(), uint64_t{what.count} * heads * head_dim, name.c_str(), bench.stream);
}

constexpr uint32_t kPrefillTokens[] = {512, 2048, 8192, 32768};

struct PrefillCase {
  uint32_t tokens;
  uint32_t head_dim = kHeadDim;
  std::optional<PrefillKernel> kernel = {};  // or what is taken
  KvDType dtype = KvDType::kBF16;
  uint32_t window = 0;
  float softcap = 0;
};

const char* NameOf(PrefillKernel kernel) { return kernel == PrefillKernel::kMma ? "mma" : "wgmma"; }

Status PrefillAttention(BenchContext& bench, const AttentionPool& pool, const CudaBuffer& q,
                        const PrefillCase& what) {
  const auto& [tokens, head_dim, kernel, dtype, window, softcap] = what;
  const std::string name =
      Concat("prefill attention ", KvDTypeName(dtype), ", ", tokens, " tokens", HeadText(head_dim),
             kernel.has_value() ? Concat(", ", NameOf(*kernel)) : "", SwitchesText(window, softcap));
  if (!bench.report.HasTime(name)) return {};
  const uint32_t heads = HeadsOf(head_dim);
  std::vector<uint32_t> position(tokens);
  std::iota(position.begin(), position.end(), 0);
  std::vector<GpuQueryRun> run_list;  // long ones first, as a step has them
  for (uint32_t end = tokens; end > 0; end -= kGpuQueryTile)
    run_list.push_back({end - kGpuQueryTile, kGpuQueryTile});
  ASSIGN_OR_RETURN(const CudaBuffer positions, Upload(position, "positions"));
  ASSIGN_OR_RETURN(const CudaBuffer sequences, Zeroed(tokens * sizeof(uint32_t)));
  ASSIGN_OR_RETURN(const CudaBuffer runs, Upload(run_list, "runs"));
  ASSIGN_OR_RETURN(const CudaBuffer out, Poisoned(uint64_t{tokens} * heads * head_dim * sizeof(uint16_t)));
  GpuBatch batch = pool.Batch(std::max(tokens, 8192u), true, head_dim);
  batch.tokens = tokens;
  batch.positions = positions.as<uint32_t>();
  batch.sequences = sequences.as<uint32_t>();
  const GpuAttentionArgs args = {.batch = batch,
                                 .q = q.as<uint16_t>(),
                                 .q_pitch = kQkvWidth,
                                 .out = out.as<uint16_t>(),
                                 .kv = pool.Layer(dtype),
                                 .heads = heads,
                                 .scale = 1 / std::sqrt(static_cast<float>(head_dim)),
                                 .window = window,
                                 .softcap = softcap,
                                 .runs = runs.as<GpuQueryRun>(),
                                 .run_count = static_cast<uint32_t>(run_list.size())};
  const PrefillKernel chosen = kernel.value_or(DefaultPrefillKernel(args));
  const CallPlan plan = {.calls = std::max(16384 / tokens, 1u), .rounds = bench.rounds, .warm_seconds = 0.05};
  const auto timing = TimeCalls(bench.stream, plan, [&](uint32_t, const CudaLaunch& how) {
    return PrefillAttentionCuda(args, chosen, how);
  });
  if (!timing.ok()) return bench.report.SkipOr(name, timing.status());
  const double seen = window > 0 ? std::min(window, tokens) : tokens;  // positions of the last token
  const double pairs = seen * (seen + 1) / 2 + (tokens - seen) * seen;
  const double flops = 4.0 * heads * head_dim * pairs;
  bench.report.Add({.name = name,
                    .value = flops / timing->seconds / 1e12,
                    .unit = "TFLOP/s",
                    .spread = timing->spread,
                    .fraction = flops / timing->seconds / bench.limits.matmul,
                    .limit = "matmul"});
  return CheckFinite(out.as<uint16_t>(), uint64_t{tokens} * heads * head_dim, name.c_str(), bench.stream);
}

// ---- What moves a step's activations

// What a call leaves, of one of these, finite.
struct StreamOutput {
  const uint16_t* bf16 = nullptr;
  const float* f32 = nullptr;
  uint64_t count = 0;
};

// A call moves `bytes`; `queue` rotates over memory beyond the cache. What is left out for want of time left
// nothing.
Status Stream(BenchContext& bench, const std::string& name, double bytes, const BenchGoal& goal,
              const QueueCall& queue, const StreamOutput& output = {}) {
  if (!bench.report.HasTime(name)) return {};
  const CallPlan plan = {.calls = CallsFor(bytes, bench.limits.copy, 4), .rounds = bench.rounds};
  const auto timing = TimeCalls(bench.stream, plan, queue);
  if (!timing.ok()) return bench.report.SkipOr(name, timing.status());
  bench.report.Add({.name = name,
                    .value = timing->seconds * 1e6,
                    .unit = "us",
                    .spread = timing->spread,
                    .fraction = bytes / timing->seconds / bench.limits.copy,
                    .limit = "copy",
                    .goal = goal});
  if (output.bf16 != nullptr) return CheckFinite(output.bf16, output.count, name.c_str(), bench.stream);
  if (output.f32 != nullptr) return CheckFinite(output.f32, output.count, name.c_str(), bench.stream);
  return {};
}

constexpr uint32_t kTokens = 4096, kTurns = 4;
const BenchGoal kStreamGoal = BenchGoal::Fraction(0.80);

Status NormAndEmbed(BenchContext& bench) {
  constexpr uint64_t kElements = uint64_t{kTokens} * kHidden;
  ASSIGN_OR_RETURN(const CudaBuffer x, RandomF32(kTurns * kElements, {.seed = 31}, bench.stream));
  ASSIGN_OR_RETURN(const CudaBuffer weight,
                   RandomF32(kHidden, {.mean = 1, .deviation = 0.1f, .seed = 32}, bench.stream));
  ASSIGN_OR_RETURN(const CudaBuffer out, Poisoned(kTurns * kElements * sizeof(uint16_t)));
  ASSIGN_OR_RETURN(const CudaBuffer scales, Poisoned(kTokens * sizeof(float)));
  GpuRmsNormArgs norm = {.weight = weight.as<float>(), .count = kTokens, .width = kHidden, .epsilon = 1e-5f};
  RETURN_IF_ERROR(Stream(bench, "rms_norm to bf16, 4096 tokens", 6.0 * kElements, kStreamGoal,
                         [&](uint32_t i, const CudaLaunch& how) {
                           norm.x = x.as<float>() + i % kTurns * kElements;
                           norm.out = out.as<uint16_t>() + i % kTurns * kElements;
                           return RmsNormCuda(norm, how);
                         },
                         {.bf16 = out.as<uint16_t>(), .count = kElements}));
  norm.out = nullptr;
  norm.scales = scales.as<float>();
  for (const RowCodes codes : {RowCodes::kE4M3, RowCodes::kInt8}) {
    norm.codes = codes;
    const char* const to = codes == RowCodes::kE4M3 ? "fp8" : "int8";
    RETURN_IF_ERROR(Stream(bench, Concat("rms_norm to ", to, ", 4096 tokens"), 5.0 * kElements, kStreamGoal,
                           [&](uint32_t i, const CudaLaunch& how) {
                             norm.x = x.as<float>() + i % kTurns * kElements;
                             norm.out_codes = out.as<uint8_t>() + i % kTurns * kElements;
                             return RmsNormCuda(norm, how);
                           },
                           {.f32 = scales.as<float>(), .count = kTokens}));
  }

  std::minstd_rand random(33);
  std::vector<int32_t> ids(kTurns * kTokens);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % kVocab);
  ASSIGN_OR_RETURN(const CudaBuffer tokens, Upload(ids, "tokens"));
  ASSIGN_OR_RETURN(const CudaBuffer table, RandomBF16(uint64_t{kVocab} * kHidden, 34, bench.stream));
  return Stream(bench, "embed, 4096 tokens", 6.0 * kElements, {},
                [&](uint32_t i, const CudaLaunch& how) {
                  GpuEmbedArgs embed;
                  embed.tokens = tokens.as<int32_t>() + i % kTurns * kTokens;
                  embed.count = kTokens;
                  embed.table = table.as<uint16_t>();
                  embed.vocab = kVocab;
                  embed.width = kHidden;
                  embed.out = x.as<float>() + i % kTurns * kElements;
                  return EmbedCuda(embed, how);
                },
                {.f32 = x.as<float>(), .count = kElements});
}

// RoPE's of each position below `positions`: what they turn in place, again and again, keeps its length.
struct Angles {
  static StatusOr<Angles> Make(uint32_t positions) {
    std::vector<uint32_t> every(positions);
    std::iota(every.begin(), every.end(), 0);
    std::vector<float> cos(uint64_t{positions} * kHeadDim / 2), sin(cos.size());
    RopeAngles(every.data(), positions, MakeRopeFrequencies(5e5, kHeadDim), cos.data(), sin.data());
    Angles out;
    ASSIGN_OR_RETURN(out.cos, Upload(cos, "cos"));
    ASSIGN_OR_RETURN(out.sin, Upload(sin, "sin"));
    return out;
  }
  CudaBuffer cos, sin;
};

// Leaves keys and values of each dtype in the pool.
Status RopeKv(BenchContext& bench, const AttentionPool& pool) {
  constexpr uint64_t kElements = uint64_t{kTokens} * kQkvWidth;
  ASSIGN_OR_RETURN(const CudaBuffer qkv, RandomBF16(kTurns * kElements, 41, bench.stream));
  ASSIGN_OR_RETURN(const Angles angles, Angles::Make(kTokens));
  std::vector<uint32_t> position(kTokens), sequence(kTurns * kTokens);
  std::iota(position.begin(), position.end(), 0);
  for (uint32_t i = 0; i < sequence.size(); ++i) sequence[i] = i / kTokens;
  ASSIGN_OR_RETURN(const CudaBuffer positions, Upload(position, "positions"));
  ASSIGN_OR_RETURN(const CudaBuffer sequences, Upload(sequence, "sequences"));
  GpuBatch batch = pool.Batch(8192, true);
  batch.tokens = kTokens;
  batch.positions = positions.as<uint32_t>();
  for (const KvDType dtype : {KvDType::kBF16, KvDType::kF16, KvDType::kInt8, KvDType::kFp8}) {
    const double row_bytes = kHeadDim * KvElementBytes(dtype) + (HasScales(dtype) ? sizeof(float) : 0);
    const double written = kTokens * (2.0 * kHeads * kHeadDim + 2.0 * kKvHeads * row_bytes);
    const std::string of = dtype == KvDType::kBF16 ? "" : Concat(" to ", KvDTypeName(dtype));
    RETURN_IF_ERROR(Stream(bench, Concat("rope_kv", of, ", 4096 tokens"), 2.0 * kElements + written,
                           kStreamGoal,
                           [&](uint32_t i, const CudaLaunch& how) {
                             batch.sequences = sequences.as<uint32_t>() + i % kTurns * kTokens;
                             return RopeKvCuda({.batch = batch,
                                                .qkv = qkv.as<uint16_t>() + i % kTurns * kElements,
                                                .cos = angles.cos.as<float>(),
                                                .sin = angles.sin.as<float>(),
                                                .heads = kHeads,
                                                .kv = pool.Layer(dtype)},
                                               how);
                           },
                           {.bf16 = qkv.as<uint16_t>(), .count = kElements}));
  }
  return {};
}

Status GateMul(BenchContext& bench) {
  constexpr uint64_t kElements = uint64_t{kTokens} * kFfn;  // of the output
  ASSIGN_OR_RETURN(const CudaBuffer in, RandomBF16(2 * kElements, 51, bench.stream));
  ASSIGN_OR_RETURN(const CudaBuffer out, Poisoned(kElements * sizeof(uint16_t)));
  ASSIGN_OR_RETURN(const CudaBuffer scales, Poisoned(kTokens * sizeof(float)));
  GpuGateMulArgs args = {
      .in = in.as<uint16_t>(), .tokens = kTokens, .width = kFfn, .out = out.as<uint16_t>()};
  const QueueCall queue = [&](uint32_t, const CudaLaunch& how) { return GateMulCuda(args, how); };
  RETURN_IF_ERROR(Stream(bench, "gate_mul to bf16, 4096 tokens", 6.0 * kElements, kStreamGoal, queue,
                         {.bf16 = out.as<uint16_t>(), .count = kElements}));
  args.out = nullptr;
  args.out_e4m3 = out.as<uint8_t>();
  args.scales = scales.as<float>();
  return Stream(bench, "gate_mul to fp8, 4096 tokens", 5.0 * kElements, kStreamGoal, queue,
                {.f32 = scales.as<float>(), .count = kTokens});
}

// The largest matrix of a layer as bf16, what cuBLASLt multiplies with.
Status Dequantize(BenchContext& bench, GpuFormat format) {
  const std::string name = Concat("dequantize ", NameOf(format), ", 28672 x 4096");
  ASSIGN_OR_RETURN(const CudaWeights* weights, bench.weights.Of(format));
  const GpuMatrix& one = weights->layers[0].gate_up;
  const uint64_t elements = uint64_t{one.rows} * one.columns;
  ASSIGN_OR_RETURN(const CudaBuffer out, Poisoned(elements * sizeof(uint16_t)));
  const auto dequantize = [&](uint32_t i, const CudaLaunch& how) {
    return DequantizeCuda(weights->layers[i % kTurns].gate_up, out.as<uint16_t>(), how);
  };
  const double bytes = static_cast<double>(BytesOf(one)) + 2.0 * elements;
  return Stream(bench, name, bytes, kStreamGoal, dequantize, {.bf16 = out.as<uint16_t>(), .count = elements});
}

// What families have beside Llama, and rows that become codes by themselves.
Status OtherStreams(BenchContext& bench) {
  constexpr uint64_t kElements = uint64_t{kTokens} * kHidden, kRows = 256, kLogits = kRows * kVocab;
  ASSIGN_OR_RETURN(const CudaBuffer x, RandomF32(kTurns * kElements, {.seed = 71}, bench.stream));
  ASSIGN_OR_RETURN(const CudaBuffer hidden, Zeroed(kTurns * kElements * sizeof(float)));
  ASSIGN_OR_RETURN(const CudaBuffer weight, RandomF32(kHidden, {.mean = 1, .seed = 72}, bench.stream));
  const auto add_norm = [&](uint32_t i, const CudaLaunch& how) {
    return AddNormCuda({.x = x.as<float>() + i % kTurns * kElements,
                        .weight = weight.as<float>(),
                        .hidden = hidden.as<float>() + i % kTurns * kElements,
                        .count = kTokens,
                        .width = kHidden,
                        .epsilon = 1e-6f},
                       how);
  };
  RETURN_IF_ERROR(Stream(bench, "add_norm, 4096 tokens", 12.0 * kElements, kStreamGoal, add_norm,
                         {.f32 = hidden.as<float>(), .count = kElements}));

  ASSIGN_OR_RETURN(const CudaBuffer logits, RandomF32(kLogits, {.deviation = 9, .seed = 73}, bench.stream));
  const auto cap = [&](uint32_t, const CudaLaunch& how) {
    return CapLogitsCuda({.logits = logits.as<float>(), .count = kLogits, .cap = 30}, how);
  };
  RETURN_IF_ERROR(Stream(bench, "cap_logits, 256 rows", 8.0 * kLogits, kStreamGoal, cap,
                         {.f32 = logits.as<float>(), .count = kLogits}));

  ASSIGN_OR_RETURN(const CudaBuffer rows, RandomBF16(kTurns * kElements, 74, bench.stream));
  ASSIGN_OR_RETURN(const CudaBuffer codes, Poisoned(kElements));
  ASSIGN_OR_RETURN(const CudaBuffer scales, Poisoned(kTokens * sizeof(float)));
  for (const RowCodes kind : {RowCodes::kE4M3, RowCodes::kInt8}) {
    const auto quantize = [&](uint32_t i, const CudaLaunch& how) {
      return QuantizeRowsCuda({.x = rows.as<uint16_t>() + i % kTurns * kElements,
                               .rows = kTokens,
                               .width = kHidden,
                               .out = codes.as<uint8_t>(),
                               .scales = scales.as<float>(),
                               .codes = kind},
                              how);
    };
    RETURN_IF_ERROR(
        Stream(bench, Concat("quantize_rows to ", kind == RowCodes::kE4M3 ? "fp8" : "int8", ", 4096 tokens"),
               3.0 * kElements, kStreamGoal, quantize, {.f32 = scales.as<float>(), .count = kTokens}));
  }

  constexpr uint64_t kGated = uint64_t{kTokens} * kFfn;
  ASSIGN_OR_RETURN(const CudaBuffer in, RandomBF16(2 * kGated, 75, bench.stream));
  ASSIGN_OR_RETURN(const CudaBuffer out, Poisoned(kGated * sizeof(uint16_t)));
  const auto gelu = [&](uint32_t, const CudaLaunch& how) {
    return GateMulCuda({.in = in.as<uint16_t>(),
                        .tokens = kTokens,
                        .width = kFfn,
                        .gate = GateFunction::kGelu,
                        .out = out.as<uint16_t>()},
                       how);
  };
  return Stream(bench, "gate_mul of GELU, 4096 tokens", 6.0 * kGated, kStreamGoal, gelu,
                {.bf16 = out.as<uint16_t>(), .count = kGated});
}

Status KvCopy(BenchContext& bench) {
  constexpr uint32_t kParts = 64, kBlocks = 256, kPartBytes = kBlockTokens * kHeadDim * sizeof(uint16_t);
  constexpr uint64_t kBlockBytes = uint64_t{kParts} * kKvHeads * kPartBytes;
  ASSIGN_OR_RETURN(const CudaBuffer pool, RandomBF16(kBlocks * kBlockBytes / 2, 61, bench.stream));
  ASSIGN_OR_RETURN(const CudaBuffer staging, Poisoned(kBlockBytes));
  std::vector<GpuKvPart> list;
  for (uint32_t i = 0; i < kParts; ++i) {
    GpuKvPart& part = list.emplace_back();
    part.data = pool.data() + uint64_t{i} * kKvHeads * kBlocks * kPartBytes;
    part.bytes = kPartBytes;
    part.row_bytes = kHeadDim * sizeof(uint16_t);
    part.staged_at = uint64_t{i} * kKvHeads * kPartBytes;
  }
  ASSIGN_OR_RETURN(const CudaBuffer parts, Upload(list, "KV parts"));
  GpuKvCopyArgs args;
  args.parts = parts.as<GpuKvPart>();
  args.part_count = kParts;
  args.kv_heads = kKvHeads;
  args.blocks = kBlocks;
  args.rows = kBlockTokens;
  const QueueCall queue = [&](uint32_t i, const CudaLaunch& how) {
    args.from = i % (kBlocks / 2);
    args.to = args.from + kBlocks / 2;
    return KvCopyCuda(args, how);
  };
  RETURN_IF_ERROR(Stream(bench, "kv_copy of 2 MiB within the pool", 2.0 * kBlockBytes, {}, queue));
  args.staging = staging.data();
  RETURN_IF_ERROR(Stream(bench, "kv_copy of 2 MiB to staging", 2.0 * kBlockBytes, {}, queue,
                         {.bf16 = staging.as<uint16_t>(), .count = kBlockBytes / 2}));
  args.to_pool = true;
  return Stream(bench, "kv_copy of 2 MiB from staging", 2.0 * kBlockBytes, {}, queue);
}

// ---- Sampling

// Logits of deviation 3: 0.9 of the probability is on some four of a hundred tokens, many more than a trained
// model's, so this is a hard case of top-p.
Status Sampling(BenchContext& bench) {
  constexpr uint32_t kMostRows = 256;
  const struct {
    const char* name;
    GpuSampleRow row;
    bool samples;
  } choices[] = {{"greedy", {}, false},
                 {"top-p 0.9", {.temperature = 0.8f, .top_p = 0.9f}, true},
                 {"top-k 50, top-p 0.9", {.temperature = 0.8f, .top_k = 50, .top_p = 0.9f}, true},
                 {"min-p 0.05", {.temperature = 0.8f, .min_p = 0.05f}, true}};
  ASSIGN_OR_RETURN(const CudaBuffer logits, RandomF32(uint64_t{kTurns} * kMostRows * kVocab,
                                                      {.deviation = 3, .seed = 71}, bench.stream));
  ASSIGN_OR_RETURN(const CudaBuffer scratch,
                   CudaBuffer::Device(GpuSampleScratchBytes(kMostRows, kVocab), "scratch of sampling"));
  ASSIGN_OR_RETURN(const CudaBuffer results, Poisoned(kMostRows * sizeof(GpuSampleResult)));
  for (const auto& choice : choices) {
    std::minstd_rand random(72);
    std::vector<GpuSampleRow> rows(kMostRows, choice.row);
    for (GpuSampleRow& row : rows) row.uniform = static_cast<float>(random() % 65536) / 65536;
    ASSIGN_OR_RETURN(const CudaBuffer params, Upload(rows, "choices"));
    for (const uint32_t count : {1u, 64u, 128u, 256u}) {
      const std::string name = Concat("sampling, ", choice.name, ", ", count, count == 1 ? " row" : " rows");
      if (!bench.report.HasTime(name)) continue;
      const uint32_t turns = kTurns * kMostRows / count;
      const double bytes = 4.0 * count * kVocab;
      GpuSampleArgs args;
      args.rows = count;
      args.vocab = args.pitch = kVocab;
      args.params = params.as<GpuSampleRow>();
      args.results = results.as<GpuSampleResult>();
      args.scratch = scratch.data();
      args.samples = choice.samples;
      const CallPlan plan = {.calls = std::clamp(turns, 4u, 128u), .rounds = bench.rounds};
      const auto timing = TimeCalls(bench.stream, plan, [&](uint32_t i, const CudaLaunch& how) {
        args.logits = logits.as<float>() + uint64_t{i % turns} * count * kVocab;
        return SampleCuda(args, how);
      });
      if (!timing.ok()) {
        RETURN_IF_ERROR(bench.report.SkipOr(name, timing.status()));
        continue;
      }
      // At most five passes over the logits. One row's take 0.6 us at full speed, less than kernels that wait
      // for each other: what it misses the goal by is what a launch costs.
      bench.report.Add({.name = name,
                        .value = timing->seconds * 1e6,
                        .unit = "us",
                        .spread = timing->spread,
                        .fraction = bytes / timing->seconds / bench.limits.copy,
                        .limit = "one pass",
                        .goal = BenchGoal::Fraction(0.2)});
      std::vector<GpuSampleResult> host(count);
      RETURN_IF_CUDA_ERROR(
          cudaMemcpy(host.data(), results.data(), count * sizeof(GpuSampleResult), cudaMemcpyDeviceToHost));
      for (const GpuSampleResult& result : host) {
        if (result.token < 0 || result.token >= static_cast<int32_t>(kVocab) ||
            !std::isfinite(result.logprob)) {
          return WithReason(Internal(name, ": token ", result.token), "not_finite");
        }
      }
    }
  }
  return {};
}

// ---- A layer of a decode step, kernel behind kernel

// Of sequences of `context` positions each, the last of which is decoded.
struct LayerBatch {
  static StatusOr<LayerBatch> Make(uint32_t tokens, uint32_t context, cudaStream_t stream) {
    LayerBatch out;
    out.tokens = tokens;
    out.context = context;
    out.spans = (context + kGpuAttentionSpan - 1) / kGpuAttentionSpan;
    const uint32_t sequences = AttentionPool::kBlocks * kBlockTokens / context;
    out.turns = std::min(sequences / tokens, 32u);
    std::vector<uint32_t> rows(sequences);
    std::iota(rows.begin(), rows.end(), 0);
    ASSIGN_OR_RETURN(out.sequences, Upload(rows, "sequences"));
    ASSIGN_OR_RETURN(out.positions, Upload(std::vector<uint32_t>(tokens, context - 1), "positions"));
    ASSIGN_OR_RETURN(out.qkv, RandomBF16(uint64_t{tokens} * kQkvWidth, 81, stream));
    ASSIGN_OR_RETURN(out.attended, Poisoned(uint64_t{tokens} * kHeads * kHeadDim * sizeof(uint16_t)));
    ASSIGN_OR_RETURN(out.partials, Poisoned(GpuAttentionPartialFloats(tokens, kHeads, kHeadDim, out.spans) *
                                            sizeof(float)));
    ASSIGN_OR_RETURN(out.arrived, Zeroed(uint64_t{tokens} * kKvHeads * sizeof(uint32_t)));
    ASSIGN_OR_RETURN(out.angles, Angles::Make(context));
    return out;
  }

  // RoPE and attention of turn `i`, by one kernel or by two.
  cudaError_t Attend(const AttentionPool& pool, uint32_t i, bool is_one_kernel, CudaLaunch how) const {
    const float *const cos = angles.cos.as<float>(), *const sin = angles.sin.as<float>();
    GpuBatch batch = pool.Batch(context, /*is_shuffled=*/true);
    batch.tokens = tokens;
    batch.positions = positions.as<uint32_t>();
    batch.sequences = sequences.as<uint32_t>() + i % turns * tokens;
    const KvLayer kv = pool.Layer(KvDType::kBF16);
    if (!is_one_kernel) {
      const cudaError_t error = RopeKvCuda(
          {.batch = batch, .qkv = qkv.as<uint16_t>(), .cos = cos, .sin = sin, .heads = kHeads, .kv = kv},
          how);
      if (error != cudaSuccess) return error;
      how.follows = true;
    }
    return DecodeAttentionCuda({.batch = batch,
                                .q = qkv.as<uint16_t>(),
                                .q_pitch = kQkvWidth,
                                .out = attended.as<uint16_t>(),
                                .kv = kv,
                                .heads = kHeads,
                                .scale = 0.08838835f,
                                .count = tokens,
                                .most_spans = spans,
                                .partials = partials.as<float>(),
                                .arrived = arrived.as<uint32_t>(),
                                .cos = is_one_kernel ? cos : nullptr,
                                .sin = sin},
                               how);
  }

  double KvBytes() const { return 4.0 * tokens * context * kKvHeads * kHeadDim; }

  uint32_t tokens = 0, context = 0, spans = 0, turns = 0;
  CudaBuffer sequences, positions, qkv, attended, partials, arrived;
  Angles angles;
};

Status RopeAndDecode(BenchContext& bench, const AttentionPool& pool, uint32_t tokens, uint32_t context) {
  ASSIGN_OR_RETURN(const LayerBatch batch, LayerBatch::Make(tokens, context, bench.stream));
  for (const bool is_one_kernel : {false, true}) {
    const std::string name = Concat(is_one_kernel ? "decode attention with rope" : "rope, decode attention",
                                    " bf16, ", tokens, " x ", context);
    if (!bench.report.HasTime(name)) return {};
    const CallPlan plan = {.calls = CallsFor(batch.KvBytes(), bench.limits.copy, batch.turns),
                           .rounds = bench.rounds};
    const auto timing = TimeCalls(bench.stream, plan, [&](uint32_t i, const CudaLaunch& how) {
      return batch.Attend(pool, i, is_one_kernel, how);
    });
    if (!timing.ok()) return bench.report.SkipOr(name, timing.status());
    bench.report.Add({.name = name,
                      .value = timing->seconds * 1e6,
                      .unit = "us",
                      .spread = timing->spread,
                      .fraction = batch.KvBytes() / timing->seconds / bench.limits.copy,
                      .limit = "copy"});
    RETURN_IF_ERROR(CheckFinite(batch.attended.as<uint16_t>(), uint64_t{tokens} * kHeads * kHeadDim,
                                name.c_str(), bench.stream));
  }
  return {};
}

// A layer as CudaTransformer queues it for up to 8 tokens, again and again, in other weights and sequences.
class DecodeLayer {
 public:
  static Status Run(BenchContext& bench, const AttentionPool& pool, GpuFormat format, uint32_t tokens) {
    const std::string name =
        Concat("layer ", NameOf(format), ", ", tokens, tokens == 1 ? " token" : " tokens");
    if (!bench.report.HasTime(name)) return {};
    DecodeLayer layer(bench, pool);
    ASSIGN_OR_RETURN(layer.weights_, bench.weights.Of(format));
    ASSIGN_OR_RETURN(layer.batch_, LayerBatch::Make(tokens, kContext, bench.stream));
    ASSIGN_OR_RETURN(layer.hidden_, RandomF32(uint64_t{tokens} * kHidden, {.seed = 83}, bench.stream));
    ASSIGN_OR_RETURN(layer.norm_,
                     RandomF32(kHidden, {.mean = 1, .deviation = 0.1f, .seed = 84}, bench.stream));
    ASSIGN_OR_RETURN(layer.normed_, RandomBF16(uint64_t{tokens} * kHidden, 85, bench.stream));
    ASSIGN_OR_RETURN(layer.squares_, RandomF32(uint64_t{tokens} * kHidden / kTileRows,
                                               {.mean = 16, .deviation = 1, .seed = 86}, bench.stream));
    ASSIGN_OR_RETURN(layer.gate_, Poisoned(uint64_t{tokens} * kFfn * sizeof(uint16_t)));
    return layer.Compare(name);
  }

 private:
  static constexpr uint32_t kContext = 1024, kProducts = 4;
  struct Setting {
    bool ropes_in_attention = true;
    StreamGemmShape shapes[kProducts];  // of qkv, output, gate and up, down
  };

  DecodeLayer(BenchContext& bench, const AttentionPool& pool) : bench_(bench), pool_(pool) {}

  Status Compare(const std::string& name) {
    Setting setting;
    const CudaLayer& one = weights_->layers[0];
    const GpuMatrix* const matrices[kProducts] = {&one.qkv, &one.output, &one.gate_up, &one.down};
    for (uint32_t i = 0; i < kProducts; ++i) {
      const GpuMatrix& m = *matrices[i];
      setting.shapes[i] = DefaultStreamGemmShape(m.rows, m.columns, m.format, batch_.tokens);
    }
    RETURN_IF_ERROR(Tune(setting));
    for (const bool ropes_in_attention : {false, true}) {
      setting.ropes_in_attention = ropes_in_attention;
      RETURN_IF_ERROR(
          Add(Concat(name, ropes_in_attention ? ": rope in attention" : ": rope apart"), setting));
    }
    return CheckFinite(hidden_.as<float>(), uint64_t{batch_.tokens} * kHidden, name.c_str(), bench_.stream);
  }

  // Product by product, the shape with which the whole chain is the fastest.
  Status Tune(Setting& setting) {
    const CallPlan plan = {.calls = Layers(), .rounds = 2, .warm_seconds = 0};
    ASSIGN_OR_RETURN(double best, Time(setting, plan));
    for (StreamGemmShape& shape : setting.shapes) {
      StreamGemmShape kept = shape;
      for (const StreamGemmShape& each : StreamGemmShapes(batch_.tokens)) {
        shape = each;
        ASSIGN_OR_RETURN(const double seconds, Time(setting, plan));
        if (seconds >= best) continue;
        best = seconds;
        kept = shape;
      }
      shape = kept;
    }
    return {};
  }

  uint32_t Layers() const { return static_cast<uint32_t>(weights_->layers.size()); }

  StatusOr<double> Time(const Setting& setting, const CallPlan& plan, double* spread = nullptr) {
    ASSIGN_OR_RETURN(const Timing timing,
                     TimeCalls(bench_.stream, plan,
                               [&](uint32_t i, const CudaLaunch& how) { return Queue(setting, i, how); }));
    if (spread != nullptr) *spread = timing.spread;
    return timing.seconds;
  }

  Status Add(const std::string& name, const Setting& setting) {
    double spread = 0;
    const auto seconds =
        Time(setting, {.calls = Layers(), .rounds = bench_.rounds, .warm_seconds = 0.01}, &spread);
    if (!seconds.ok()) return bench_.report.SkipOr(name, seconds.status());
    const CudaLayer& one = weights_->layers[0];
    double bytes = batch_.KvBytes();
    for (const GpuMatrix* m : {&one.qkv, &one.output, &one.gate_up, &one.down}) {
      bytes += static_cast<double>(BytesOf(*m));
    }
    std::string shapes;
    for (const StreamGemmShape& shape : setting.shapes) {
      shapes += Concat(" ", shape.warps, "/", shape.row_tiles, "/", shape.per_sm);
    }
    bench_.report.Add({.name = Concat(name, " (", shapes.substr(1), ")"),
                       .value = *seconds * 1e6,
                       .unit = "us",
                       .spread = spread,
                       .fraction = bytes / *seconds / bench_.limits.copy,
                       .limit = "copy"});
    return {};
  }

  cudaError_t Queue(const Setting& setting, uint32_t i, CudaLaunch how) const {
    const CudaLayer& layer = weights_->layers[i % weights_->layers.size()];
    const auto multiply = [&](uint32_t product, const GpuMatrix& matrix, const CudaBuffer& x,
                              const CudaBuffer& out, GpuGemmOut kind) {
      GpuGemmArgs args = {.x = x.as<uint16_t>(),
                          .tokens = batch_.tokens,
                          .weights = matrix,
                          .out = out.data(),
                          .kind = kind,
                          .epsilon = 1e-5f};
      if (kind == GpuGemmOut::kAddF32) {
        args.next_norm = norm_.as<float>();
        args.next_x = normed_.as<uint16_t>();
        args.next_squares = squares_.as<float>();
      } else {
        args.x_squares = squares_.as<float>();
      }
      const cudaError_t error = StreamGemmCuda(args, setting.shapes[product], how);
      how.follows = true;
      return error;
    };
    cudaError_t error = multiply(0, layer.qkv, normed_, batch_.qkv, GpuGemmOut::kBF16);
    if (error == cudaSuccess) error = batch_.Attend(pool_, i, setting.ropes_in_attention, how);
    if (error == cudaSuccess)
      error = multiply(1, layer.output, batch_.attended, hidden_, GpuGemmOut::kAddF32);
    if (error == cudaSuccess) error = multiply(2, layer.gate_up, normed_, gate_, GpuGemmOut::kGated);
    if (error == cudaSuccess) error = multiply(3, layer.down, gate_, hidden_, GpuGemmOut::kAddF32);
    return error;
  }

  BenchContext& bench_;
  const AttentionPool& pool_;
  const CudaWeights* weights_ = nullptr;
  LayerBatch batch_;
  CudaBuffer hidden_, norm_, normed_, squares_, gate_;
};

Status Attention(BenchContext& bench, AttentionPool& pool) {
  ASSIGN_OR_RETURN(const CudaBuffer q, RandomBF16(uint64_t{32768} * kQkvWidth, 26, bench.stream));
  const DecodeCase cases[] = {{.count = 64, .context = 8192},
                              {.count = 64, .context = 8192, .is_shuffled = false},
                              {.count = 256, .context = 1024},
                              {.count = 1, .context = 8192, .goal = {}}};  // too few bytes for full speed
  for (const DecodeCase& each : cases) RETURN_IF_ERROR(DecodeAttention(bench, pool, q, each));
  for (const uint32_t tokens : kPrefillTokens) RETURN_IF_ERROR(PrefillAttention(bench, pool, q, {tokens}));
  RETURN_IF_ERROR(RopeKv(bench, pool));
  for (const KvDType dtype : {KvDType::kInt8, KvDType::kFp8}) {
    RETURN_IF_ERROR(pool.BecomeCodes(dtype, bench.stream));
    RETURN_IF_ERROR(DecodeAttention(bench, pool, q, {.count = 64, .context = 8192, .dtype = dtype}));
    RETURN_IF_ERROR(PrefillAttention(bench, pool, q, {.tokens = 8192, .dtype = dtype}));
  }
  return {};
}

}  // namespace

Status BenchPrefillAttention(BenchContext& bench) {
  ASSIGN_OR_RETURN(const AttentionPool pool, AttentionPool::Make(bench.stream));
  ASSIGN_OR_RETURN(const CudaBuffer q, RandomBF16(uint64_t{32768} * kQkvWidth, 26, bench.stream));
  constexpr PrefillKernel kMma = PrefillKernel::kMma, kWgmma = PrefillKernel::kWgmma;
  for (const uint32_t tokens : kPrefillTokens) {
    for (const PrefillKernel kernel : {kMma, kWgmma}) {
      RETURN_IF_ERROR(PrefillAttention(bench, pool, q, {.tokens = tokens, .kernel = kernel}));
    }
  }
  for (const uint32_t tokens : {2048, 8192}) {
    for (const PrefillKernel kernel : {kMma, kWgmma}) {
      RETURN_IF_ERROR(PrefillAttention(bench, pool, q, {.tokens = tokens, .head_dim = 64, .kernel = kernel}));
    }
  }
  return {};
}

Status BenchFamilies(BenchContext& bench) {
  ASSIGN_OR_RETURN(AttentionPool pool, AttentionPool::Make(bench.stream));
  ASSIGN_OR_RETURN(const CudaBuffer q, RandomBF16(uint64_t{32768} * kQkvWidth, 26, bench.stream));
  const DecodeCase windowed = {.count = 64, .context = 8192, .window = 4096},
                   capped = {.count = 64, .context = 8192, .softcap = 50},
                   f16 = {.count = 64, .context = 8192, .dtype = KvDType::kF16};
  for (const DecodeCase& each : {windowed, capped, f16})
    RETURN_IF_ERROR(DecodeAttention(bench, pool, q, each));
  const PrefillCase prompt_windowed = {.tokens = 8192, .window = 1024},
                    prompt_capped = {.tokens = 8192, .softcap = 50},
                    prompt_f16 = {.tokens = 8192, .dtype = KvDType::kF16};
  for (const PrefillCase& each : {prompt_windowed, prompt_capped, prompt_f16})
    RETURN_IF_ERROR(PrefillAttention(bench, pool, q, each));
  for (const uint32_t head_dim : {32u, 64u, 256u})
    RETURN_IF_ERROR(DecodeAttention(bench, pool, q, {.count = 64, .context = 8192, .head_dim = head_dim}));
  for (const uint32_t tokens : {2048u, 8192u})
    RETURN_IF_ERROR(PrefillAttention(bench, pool, q, {.tokens = tokens, .head_dim = 256}));
  for (const KvDType dtype : {KvDType::kInt8, KvDType::kFp8}) {
    RETURN_IF_ERROR(pool.BecomeCodes(dtype, bench.stream));
    for (DecodeCase each : {windowed, capped}) {
      each.dtype = dtype;
      RETURN_IF_ERROR(DecodeAttention(bench, pool, q, each));
    }
    for (PrefillCase each : {prompt_windowed, prompt_capped}) {
      each.dtype = dtype;
      RETURN_IF_ERROR(PrefillAttention(bench, pool, q, each));
    }
  }
  return OtherStreams(bench);
}

Status BenchKernels(BenchContext& bench) {
  {
    ASSIGN_OR_RETURN(AttentionPool pool, AttentionPool::Make(bench.stream));
    RETURN_IF_ERROR(Attention(bench, pool));
  }
  RETURN_IF_ERROR(NormAndEmbed(bench));
  RETURN_IF_ERROR(GateMul(bench));
  RETURN_IF_ERROR(Sampling(bench));
  RETURN_IF_ERROR(KvCopy(bench));
  for (const GpuFormat format : {GpuFormat::kE4M3, GpuFormat::kW4, GpuFormat::kW8}) {
    const std::string name = Concat("dequantize ", NameOf(format));
    if (!bench.report.HasTime(name)) continue;
    RETURN_IF_ERROR(bench.report.SkipOr(name, Dequantize(bench, format)));
  }
  return Products::Run(bench);
}

Status BenchLayer(BenchContext& bench) {
  ASSIGN_OR_RETURN(const AttentionPool pool, AttentionPool::Make(bench.stream));
  for (const uint32_t tokens : {1u, 8u, 64u}) RETURN_IF_ERROR(RopeAndDecode(bench, pool, tokens, 1024));
  RETURN_IF_ERROR(RopeAndDecode(bench, pool, 1, 8192));
  for (const GpuFormat format : {GpuFormat::kBF16, GpuFormat::kE4M3, GpuFormat::kW4}) {
    for (const uint32_t tokens : {1u, 8u}) {
      if (bench.is_quick && tokens > 1) continue;
      RETURN_IF_ERROR(bench.report.SkipOr(Concat("layer ", NameOf(format)),
                                          DecodeLayer::Run(bench, pool, format, tokens)));
    }
  }
  return {};
}

}  // namespace terrace
