// The kernels of the invariant mode that take many tokens, beside those whose bits they make and the library.
#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/attention/decode_attention_cuda.h"
#include "kernels/attention/prefill_attention_cuda.h"
#include "kernels/attention/prefill_runs.h"
#include "kernels/attention/run_attention_cuda.h"
#include "kernels/gemm/ordered_gemm_cuda.h"
#include "kernels/gemm/stream_gemm_cuda.h"
#include "tests/gpu/bench_arrays.h"
#include "tests/gpu/bench_model.h"
#include "worker/cuda/cublas_gemm.h"

namespace terrace {
namespace {

constexpr uint32_t kMostTokens = 2048;

StatusOr<CudaBuffer> RandomBF16(uint64_t count, uint64_t seed, cudaStream_t stream) {
  ASSIGN_OR_RETURN(CudaBuffer out, CudaBuffer::Device(count * sizeof(uint16_t), "bf16 values"));
  RETURN_IF_CUDA_ERROR(FillBF16(out.as<uint16_t>(), count, {.seed = seed}, stream));
  return out;
}

StatusOr<CudaBuffer> Zeroed(uint64_t bytes) {
  ASSIGN_OR_RETURN(CudaBuffer out, CudaBuffer::Device(bytes, "zeros"));
  RETURN_IF_CUDA_ERROR(cudaMemset(out.data(), 0, bytes));
  return out;
}

template <typename T>
StatusOr<CudaBuffer> Upload(const std::vector<T>& values, const char* what) {
  ASSIGN_OR_RETURN(CudaBuffer out, CudaBuffer::Device(values.size() * sizeof(T), what));
  RETURN_IF_CUDA_ERROR(cudaMemcpy(out.data(), values.data(), out.bytes(), cudaMemcpyHostToDevice));
  return out;
}

// ---- Products: the four of a layer

struct LayerProduct {
  GpuMatrix CudaLayer::*matrix;
  GpuGemmOut kind;
};
constexpr LayerProduct kProducts[] = {{&CudaLayer::qkv, GpuGemmOut::kBF16},
                                      {&CudaLayer::output, GpuGemmOut::kAddF32},
                                      {&CudaLayer::gate_up, GpuGemmOut::kGated},
                                      {&CudaLayer::down, GpuGemmOut::kAddF32}};

struct Buffers {
  CudaBuffer x, bf16, f32;
  void* Out(GpuGemmOut kind) const {
    return kind == GpuGemmOut::kAddF32 ? static_cast<void*>(f32.data()) : bf16.data();
  }
};

using MultiplyCall = std::function<cudaError_t(const GpuGemmArgs& args, const CudaLaunch& how)>;

double LayerFlops(const CudaWeights& weights, uint32_t tokens) {
  double flops = 0;
  for (const LayerProduct& product : kProducts) {
    const GpuMatrix& m = weights.layers[0].*product.matrix;
    flops += 2.0 * tokens * m.rows * m.columns;
  }
  return flops;
}

// Adds a row: the operations per second of a layer's products.
Status LayerRow(BenchContext& bench, const std::string& name, const CudaWeights& weights, uint32_t tokens,
                const Buffers& buffers, const MultiplyCall& multiply) {
  if (!bench.report.HasTime(name)) return {};
  double seconds = 0;
  for (const LayerProduct& product : kProducts) {
    const CallPlan plan = {.calls = 4, .rounds = bench.rounds, .warm_seconds = 0.005};
    const auto timing = TimeCalls(bench.stream, plan, [&](uint32_t i, const CudaLaunch& how) {
      return multiply({.x = buffers.x.as<uint16_t>(),
                       .tokens = tokens,
                       .weights = weights.layers[i % weights.layers.size()].*product.matrix,
                       .out = buffers.Out(product.kind),
                       .kind = product.kind},
                      how);
    });
    if (!timing.ok()) return bench.report.SkipOr(name, timing.status());
    seconds += timing->seconds;
  }
  const double rate = LayerFlops(weights, tokens) / seconds;
  bench.report.Add({.name = name,
                    .value = rate / 1e12,
                    .unit = "TFLOP/s",
                    .fraction = rate / bench.limits.matmul,
                    .limit = "matmul"});
  return {};
}

Status LibraryRow(BenchContext& bench, const CudaWeights& weights, uint32_t tokens, const Buffers& buffers,
                  CublasLt& cublas) {
  const auto gemm_of = [&](const GpuGemmArgs& args) {
    const bool adds = args.kind == GpuGemmOut::kAddF32;
    return CublasGemm{.x = args.x,
                      .tokens = tokens,
                      .weights = args.weights.codes,
                      .rows = args.weights.rows,
                      .columns = args.weights.columns,
                      .out = args.out,
                      .out_is_f32 = adds,
                      .add_to_out = adds};
  };
  for (const LayerProduct& product : kProducts) {
    const CublasGemm gemm = gemm_of({.x = buffers.x.as<uint16_t>(),
                                     .tokens = tokens,
                                     .weights = weights.layers[0].*product.matrix,
                                     .out = buffers.Out(product.kind),
                                     .kind = product.kind});
    RETURN_IF_ERROR(cublas.Tune({&gemm, 1}, bench.stream).status());
  }
  Status failed;
  RETURN_IF_ERROR(LayerRow(bench, Concat("invariant gemm bf16, ", tokens, " tokens: cuBLASLt, not invariant"),
                           weights, tokens, buffers, [&](const GpuGemmArgs& args, const CudaLaunch& how) {
                             if (Status status = cublas.Run(gemm_of(args), how.stream); !status.ok()) {
                               failed = status;
                             }
                             return cudaSuccess;
                           }));
  return failed;
}

Status ProductRows(BenchContext& bench, GpuFormat format, const Buffers& buffers, CublasLt& cublas) {
  ASSIGN_OR_RETURN(const CudaWeights* weights, bench.weights.Of(format));
  for (const uint32_t tokens : {128u, 512u, kMostTokens}) {
    const std::string name = Concat("invariant gemm ", NameOf(format), ", ", tokens, " tokens: ");
    const auto row = [&](const char* kernel, const MultiplyCall& multiply) {
      return LayerRow(bench, name + kernel, *weights, tokens, buffers, multiply);
    };
    RETURN_IF_ERROR(row("ordered_gemm", [&](const GpuGemmArgs& args, const CudaLaunch& how) {
      return OrderedGemmCuda(args, DefaultOrderedGemmTile(args.weights.rows, tokens), how);
    }));
    RETURN_IF_ERROR(row("ordered_gemm, small tiles", [&](const GpuGemmArgs& args, const CudaLaunch& how) {
      return OrderedGemmCuda(args, OrderedGemmTile::kSmall, how);
    }));
    RETURN_IF_ERROR(row("ordered_gemm, large tiles", [&](const GpuGemmArgs& args, const CudaLaunch& how) {
      return OrderedGemmCuda(args, OrderedGemmTile::kLarge, how);
    }));
    RETURN_IF_ERROR(row("stream_gemm", [&](const GpuGemmArgs& args, const CudaLaunch& how) {
      const GpuMatrix& m = args.weights;
      return StreamGemmCuda(args, DefaultStreamGemmShape(m.rows, m.columns, m.format, tokens), how);
    }));
    if (format == GpuFormat::kBF16) {
      RETURN_IF_ERROR(LibraryRow(bench, *weights, tokens, buffers, cublas));
    }
  }
  return {};
}

// ---- Attention

// Keys and values of one layer of one sequence, and its queries.
class AttentionInputs {
 public:
  static StatusOr<AttentionInputs> Make(uint32_t positions, cudaStream_t stream) {
    const ModelConfig config = BenchConfig();
    AttentionInputs out;
    const uint32_t blocks = (positions + kBlockTokens - 1) / kBlockTokens;
    const uint64_t elements = uint64_t{config.kv_heads} * blocks * kBlockTokens * config.head_dim;
    out.args_.q_pitch = (config.heads + 2 * config.kv_heads) * config.head_dim;
    ASSIGN_OR_RETURN(out.keys_, RandomBF16(elements, 81, stream));
    ASSIGN_OR_RETURN(out.values_, RandomBF16(elements, 82, stream));
    ASSIGN_OR_RETURN(out.q_, RandomBF16(uint64_t{positions} * out.args_.q_pitch, 83, stream));
    ASSIGN_OR_RETURN(out.out_, Zeroed(uint64_t{positions} * config.heads * config.head_dim * 2));
    std::vector<int32_t> table(blocks);
    std::iota(table.begin(), table.end(), 0);
    std::vector<uint32_t> position(positions);
    std::iota(position.begin(), position.end(), 0);
    const PrefillChunk chunk = {.first = 0, .count = positions, .position = 0};
    const std::vector<GpuQueryRun> runs = PrefillRuns({&chunk, 1});
    const uint32_t spans = (positions + kGpuAttentionSpan - 1) / kGpuAttentionSpan;
    ASSIGN_OR_RETURN(out.table_, Upload(table, "block table"));
    ASSIGN_OR_RETURN(out.positions_, Upload(position, "positions"));
    ASSIGN_OR_RETURN(out.sequences_, Zeroed(positions * sizeof(uint32_t)));
    ASSIGN_OR_RETURN(out.runs_, Upload(runs, "runs"));
    ASSIGN_OR_RETURN(
        out.partials_,
        Zeroed(GpuAttentionPartialFloats(positions, config.heads, config.head_dim, spans) * sizeof(float)));
    ASSIGN_OR_RETURN(out.arrived_, Zeroed(uint64_t{positions} * config.kv_heads * sizeof(uint32_t)));
    out.args_.batch = {.tokens = positions,
                       .positions = out.positions_.as<uint32_t>(),
                       .sequences = out.sequences_.as<uint32_t>(),
                       .block_tables = out.table_.as<int32_t>(),
                       .table_pitch = blocks,
                       .kv_heads = config.kv_heads,
                       .head_dim = config.head_dim,
                       .blocks = blocks,
                       .log2_block_tokens = kLog2BlockTokens};
    out.args_.q = out.q_.as<uint16_t>();
    out.args_.out = out.out_.as<uint16_t>();
    out.args_.kv = {.dtype = KvDType::kBF16, .keys = {out.keys_.data()}, .values = {out.values_.data()}};
    out.args_.heads = config.heads;
    out.args_.scale = 0.08838835f;
    out.args_.count = positions;
    out.args_.most_spans = spans;
    out.args_.partials = out.partials_.as<float>();
    out.args_.arrived = out.arrived_.as<uint32_t>();
    out.args_.runs = out.runs_.as<GpuQueryRun>();
    out.args_.run_count = static_cast<uint32_t>(runs.size());
    return out;
  }
  const GpuAttentionArgs& args() const { return args_; }

 private:
  static constexpr uint32_t kLog2BlockTokens = 4, kBlockTokens = 1u << kLog2BlockTokens;
  GpuAttentionArgs args_;
  CudaBuffer keys_, values_, q_, out_, table_, positions_, sequences_, runs_, partials_, arrived_;
};

Status AttentionRows(BenchContext& bench, uint32_t tokens) {
  ASSIGN_OR_RETURN(const AttentionInputs inputs, AttentionInputs::Make(tokens, bench.stream));
  const uint64_t width = uint64_t{BenchConfig().heads} * BenchConfig().head_dim;
  const struct {
    const char* name;
    cudaError_t (*attend)(const GpuAttentionArgs& args, CudaLaunch how);
  } kernels[] = {{"run_attention", RunAttentionCuda},
                 {"decode_attention", DecodeAttentionCuda},
                 {"prefill_attention, other bits", PrefillAttentionCuda}};
  for (const auto& kernel : kernels) {
    const std::string name = Concat("invariant attention bf16, ", tokens, " tokens: ", kernel.name);
    if (!bench.report.HasTime(name)) continue;
    const CallPlan plan = {.calls = 4, .rounds = bench.rounds, .warm_seconds = 0.01};
    const auto timing = TimeCalls(bench.stream, plan, [&](uint32_t, const CudaLaunch& how) {
      return kernel.attend(inputs.args(), how);
    });
    if (!timing.ok()) {
      RETURN_IF_ERROR(bench.report.SkipOr(name, timing.status()));
      continue;
    }
    const double rate = 4.0 * width * (tokens * (tokens + 1.0) / 2) / timing->seconds;  // all that is seen
    bench.report.Add({.name = name,
                      .value = timing->seconds * 1e6,
                      .unit = "us",
                      .spread = timing->spread,
                      .fraction = rate / bench.limits.matmul,
                      .limit = "matmul"});
    RETURN_IF_ERROR(CheckFinite(inputs.args().out, tokens * width, name.c_str(), bench.stream));
  }
  return {};
}

}  // namespace

Status BenchInvariantKernels(BenchContext& bench) {
  const ModelConfig config = BenchConfig();
  for (const uint32_t tokens : {512u, kMostTokens}) RETURN_IF_ERROR(AttentionRows(bench, tokens));
  Buffers buffers;
  ASSIGN_OR_RETURN(buffers.x, RandomBF16(uint64_t{kMostTokens} * config.ffn_size, 91, bench.stream));
  ASSIGN_OR_RETURN(buffers.bf16, Zeroed(uint64_t{kMostTokens} * 2 * config.ffn_size * sizeof(uint16_t)));
  ASSIGN_OR_RETURN(buffers.f32, Zeroed(uint64_t{kMostTokens} * config.hidden_size * sizeof(float)));
  ASSIGN_OR_RETURN(const auto cublas, CublasLt::Create());
  for (const GpuFormat format : {GpuFormat::kBF16, GpuFormat::kE4M3, GpuFormat::kW4, GpuFormat::kW8}) {
    if (bench.is_quick && format != GpuFormat::kBF16) break;
    const std::string name = Concat("invariant gemm ", NameOf(format));
    if (!bench.report.HasTime(name)) continue;
    RETURN_IF_ERROR(bench.report.SkipOr(name, ProductRows(bench, format, buffers, *cublas)));
    if (format != GpuFormat::kBF16) bench.weights.Drop(format);
  }
  return {};
}

}  // namespace terrace
