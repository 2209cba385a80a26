// A mixture of experts: what a layer's router chooses, both grouped products and their combination, at the
// shapes of Mixtral 8x7B and Qwen3 30B-A3B. Logits are random, so tokens take experts evenly; the limit of
// a product is that of what it reads of the experts that any token took.
#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "kernels/moe/grouped_gemm_cuda.h"
#include "kernels/moe/route_experts_cuda.h"
#include "tests/gpu/bench_arrays.h"
#include "tests/gpu/bench_model.h"
#include "worker/cuda/expert_routes.h"

namespace terrace {
namespace {

struct MoeShape {
  const char* name;
  uint32_t hidden, ffn, experts, per_token;
};
constexpr MoeShape kShapes[] = {{"Mixtral 8x7B", 4096, 14336, 8, 2}, {"Qwen3 30B-A3B", 2048, 768, 128, 8}};
constexpr uint32_t kMostTokens = 4096;
// Of the routes that calls take in turns: of few tokens they choose other experts, which are not in the
// device's cache.
constexpr uint32_t kRoutes = 8;

// The experts of a layer, and what passes through it.
class MoeLayer {
 public:
  static StatusOr<MoeLayer> Create(const MoeShape& shape, GpuFormat format, cudaStream_t stream) {
    MoeLayer out(shape);
    ASSIGN_OR_RETURN(out.gate_ups_, out.Matrices(format, 2 * shape.ffn, shape.hidden, stream));
    ASSIGN_OR_RETURN(out.downs_, out.Matrices(format, shape.hidden, shape.ffn, stream));
    const uint64_t pairs = uint64_t{kMostTokens} * shape.per_token;
    const auto add = [&](uint64_t bytes) -> StatusOr<std::byte*> { return out.Memory(bytes); };
    ASSIGN_OR_RETURN(std::byte * x, add(uint64_t{kMostTokens} * shape.hidden * sizeof(uint16_t)));
    ASSIGN_OR_RETURN(std::byte * gated, add(pairs * shape.ffn * sizeof(uint16_t)));
    ASSIGN_OR_RETURN(std::byte * rows, add(pairs * shape.hidden * sizeof(float)));
    ASSIGN_OR_RETURN(std::byte * hidden, add(uint64_t{kMostTokens} * shape.hidden * sizeof(float)));
    out.x_ = reinterpret_cast<uint16_t*>(x);
    out.gated_ = reinterpret_cast<uint16_t*>(gated);
    out.rows_ = reinterpret_cast<float*>(rows);
    out.hidden_ = reinterpret_cast<float*>(hidden);
    RETURN_IF_CUDA_ERROR(FillBF16(out.x_, uint64_t{kMostTokens} * shape.hidden, {.seed = 3}, stream));
    RETURN_IF_CUDA_ERROR(cudaMemsetAsync(hidden, 0, uint64_t{kMostTokens} * shape.hidden * 4, stream));
    for (uint32_t i = 0; i < kRoutes; ++i) {
      ArrayLayout layout;
      const ExpertRoutesLayout routes({.tokens = kMostTokens,
                                       .experts = shape.experts,
                                       .per_token = shape.per_token,
                                       .router_rows = shape.experts},
                                      layout);
      ASSIGN_OR_RETURN(std::byte * memory, add(layout.bytes()));
      const ExpertRoutes at = routes.At(memory);
      out.routes_[i] = {.logits = at.logits,
                        .pitch = shape.experts,
                        .experts = shape.experts,
                        .per_token = shape.per_token,
                        .normalizes = true,
                        .chosen = at.chosen,
                        .weights = at.weights,
                        .groups = at.groups};
      RETURN_IF_CUDA_ERROR(
          FillF32(at.logits, uint64_t{kMostTokens} * shape.experts, {.seed = 40 + i}, stream));
    }
    return out;
  }

  // Routes steps of so many tokens; returns how many experts a step takes, on average.
  StatusOr<double> Begin(uint32_t tokens, cudaStream_t stream) {
    std::vector<uint32_t> chosen(uint64_t{tokens} * shape_.per_token);
    double used = 0;
    for (GpuRouteExpertsArgs& route : routes_) {
      const auto pairs = static_cast<uint32_t>(chosen.size());
      route.tokens = tokens;
      route.groups.chunk_tokens = ExpertChunkTokens(pairs, shape_.experts);
      route.groups.chunk_count = MostExpertChunks(pairs, shape_.experts, route.groups.chunk_tokens);
      RETURN_IF_CUDA_ERROR(RouteExpertsCuda(route, {.stream = stream, .follows = false}));
      RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(chosen.data(), route.chosen, pairs * sizeof(uint32_t),
                                           cudaMemcpyDeviceToHost, stream));
      RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream));
      used += static_cast<double>(std::set<uint32_t>(chosen.begin(), chosen.end()).size());
    }
    return used / kRoutes;
  }

  cudaError_t Route(uint32_t i, const CudaLaunch& how) const {
    return RouteExpertsCuda(routes_[i % kRoutes], how);
  }
  cudaError_t GateUp(uint32_t i, const CudaLaunch& how) const {
    return GroupedGemmCuda({.x = x_,
                            .per_token = shape_.per_token,
                            .groups = routes_[i % kRoutes].groups,
                            .weights = gate_ups_.first,
                            .experts = gate_ups_.on_device,
                            .out = gated_,
                            .kind = GpuGemmOut::kGated},
                           how);
  }
  cudaError_t Down(uint32_t i, const CudaLaunch& how) const {
    return GroupedGemmCuda({.x = gated_,
                            .groups = routes_[i % kRoutes].groups,
                            .weights = downs_.first,
                            .experts = downs_.on_device,
                            .out = rows_,
                            .kind = GpuGemmOut::kF32},
                           how);
  }
  cudaError_t Combine(uint32_t i, const CudaLaunch& how) const {
    const GpuRouteExpertsArgs& route = routes_[i % kRoutes];
    return CombineExpertsCuda({.rows = rows_,
                               .places = route.groups.places,
                               .weights = route.weights,
                               .tokens = route.tokens,
                               .per_token = shape_.per_token,
                               .width = shape_.hidden,
                               .adds_to_out = true,
                               .out = hidden_},
                              how);
  }

  const GpuMatrix& gate_up() const { return gate_ups_.first; }
  const GpuMatrix& down() const { return downs_.first; }
  const float* rows() const { return rows_; }

 private:
  struct Experts {
    GpuMatrix first;                       // what all are like
    const GpuMatrix* on_device = nullptr;  // [experts]
  };

  explicit MoeLayer(const MoeShape& shape) : shape_(shape) {}

  StatusOr<std::byte*> Memory(uint64_t bytes) {
    ASSIGN_OR_RETURN(CudaBuffer buffer, CudaBuffer::Device(bytes, "a mixture of experts"));
    memory_.push_back(std::move(buffer));
    return memory_.back().data();
  }

  StatusOr<Experts> Matrices(GpuFormat format, uint32_t rows, uint32_t columns, cudaStream_t stream) {
    GpuMatrix like{.format = format, .rows = rows, .columns = columns};
    if (format == GpuFormat::kW4) like.group = 128;
    const uint64_t codes = GpuCodeBytes(like), scales = GpuScaleBytes(like);
    std::vector<GpuMatrix> all(shape_.experts, like);
    for (GpuMatrix& matrix : all) {
      ASSIGN_OR_RETURN(std::byte * memory, Memory(codes + scales));
      const uint64_t seed = static_cast<uint64_t>(&matrix - all.data()) + 5;
      matrix.codes = memory;
      if (format == GpuFormat::kBF16) {
        RETURN_IF_CUDA_ERROR(FillBF16(reinterpret_cast<uint16_t*>(memory), codes / 2,
                                      {.deviation = 1.0f / 64, .seed = seed}, stream));
        continue;
      }
      matrix.scales = memory + codes;
      RETURN_IF_CUDA_ERROR(FillBytes(memory, codes, seed, stream));
      constexpr uint8_t kSmall = 0x1f;  // f16 below 0.01, either of a scale and a zero
      RETURN_IF_CUDA_ERROR(FillBytes(memory + codes, scales, seed + 1000, stream, kSmall));
    }
    ASSIGN_OR_RETURN(std::byte * places, Memory(all.size() * sizeof(GpuMatrix)));
    RETURN_IF_CUDA_ERROR(
        cudaMemcpy(places, all.data(), all.size() * sizeof(GpuMatrix), cudaMemcpyHostToDevice));
    return Experts{.first = all[0], .on_device = reinterpret_cast<const GpuMatrix*>(places)};
  }

  MoeShape shape_;
  Experts gate_ups_, downs_;
  uint16_t *x_ = nullptr, *gated_ = nullptr;
  float *rows_ = nullptr, *hidden_ = nullptr;
  GpuRouteExpertsArgs routes_[kRoutes];
  std::vector<CudaBuffer> memory_;
};

Status Steps(BenchContext& bench, const MoeShape& shape, GpuFormat format) {
  const std::string name = Concat(shape.name, ", ", NameOf(format));
  if (!bench.report.HasTime(name)) return {};
  ASSIGN_OR_RETURN(MoeLayer layer, MoeLayer::Create(shape, format, bench.stream));
  for (const uint32_t tokens : {1u, 8u, 64u, 512u, kMostTokens}) {
    if (bench.is_quick && tokens != 1 && tokens != 512) continue;
    const std::string row = Concat(name, ", ", tokens, tokens == 1 ? " token" : " tokens");
    if (!bench.report.HasTime(row)) return {};
    ASSIGN_OR_RETURN(const double used, layer.Begin(tokens, bench.stream));
    const double pairs = static_cast<double>(tokens) * shape.per_token;
    const auto product_limit = [&](const GpuMatrix& m, double in, double out) {
      const double bytes = used * static_cast<double>(BytesOf(m)) + in + out;
      return std::max(bytes / bench.limits.copy, 2 * pairs * m.rows * m.columns / bench.limits.matmul);
    };
    const struct {
      const char* what;
      double limit;
      cudaError_t (MoeLayer::*queue)(uint32_t, const CudaLaunch&) const;
    } parts[] = {
        {"routing", 0, &MoeLayer::Route},
        {"gate and up", product_limit(layer.gate_up(), 2.0 * tokens * shape.hidden, 2.0 * pairs * shape.ffn),
         &MoeLayer::GateUp},
        {"down", product_limit(layer.down(), 2.0 * pairs * shape.ffn, 4.0 * pairs * shape.hidden),
         &MoeLayer::Down},
        {"combination", (4.0 * pairs + 8.0 * tokens) * shape.hidden / bench.limits.copy, &MoeLayer::Combine},
    };
    for (const auto& part : parts) {
      const CallPlan plan = {.calls = 2 * kRoutes, .rounds = bench.rounds, .warm_seconds = 0.004};
      const auto timing = TimeCalls(
          bench.stream, plan, [&](uint32_t i, const CudaLaunch& how) { return (layer.*part.queue)(i, how); });
      RETURN_IF_ERROR(bench.report.SkipOr(row, timing.status()));
      if (!timing.ok()) continue;
      BenchEntry entry = {.name = Concat(row, ": ", part.what),
                          .value = timing->seconds * 1e6,
                          .unit = "us",
                          .spread = timing->spread};
      if (part.limit > 0) {
        entry.fraction = part.limit / timing->seconds;
        entry.limit = "copy, matmul";
      }
      bench.report.Add(std::move(entry));
    }
    RETURN_IF_ERROR(
        CheckFinite(layer.rows(), static_cast<uint64_t>(pairs) * shape.hidden, row.c_str(), bench.stream));
  }
  return {};
}

}  // namespace

Status BenchExperts(BenchContext& bench) {
  for (const MoeShape& shape : kShapes) {
    for (const GpuFormat format : {GpuFormat::kBF16, GpuFormat::kW4})
      RETURN_IF_ERROR(bench.report.SkipOr(shape.name, Steps(bench, shape, format)));
  }
  return {};
}

}  // namespace terrace
