// Products of the layers of Llama 3.1 8B's shape with quantized weights for tens to thousands of tokens:
// wide_gemm in each of its shapes, beside tile_gemm, int8_gemm and what cuBLASLt does with bf16 weights.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/gemm/int8_gemm_cuda.h"
#include "kernels/gemm/tile_gemm_cuda.h"
#include "kernels/gemm/wide_gemm_cuda.h"
#include "tests/gpu/bench_arrays.h"
#include "tests/gpu/bench_model.h"
#include "worker/cuda/cublas_gemm.h"

namespace terrace {
namespace {

constexpr uint32_t kMostTokens = 2048, kMostTileTokens = 512;
constexpr uint64_t kPartials = uint64_t{32} << 20;  // floats, as the worker has

struct Product {
  const char* name;
  const GpuMatrix CudaLayer::*matrix;
  GpuGemmOut kind;
};
constexpr Product kProducts[] = {{"qkv", &CudaLayer::qkv, GpuGemmOut::kBF16},
                                 {"output", &CudaLayer::output, GpuGemmOut::kAddF32},
                                 {"gate_up", &CudaLayer::gate_up, GpuGemmOut::kGated},
                                 {"down", &CudaLayer::down, GpuGemmOut::kAddF32}};

class WideGemmBench {
 public:
  static Status Run(BenchContext& bench) {
    if (!HasWarpgroups()) {
      bench.report.Skip("wide_gemm", "not sm_90");
      return {};
    }
    WideGemmBench self(bench);
    RETURN_IF_ERROR(self.Allocate());
    const std::vector<uint32_t> tokens =
        bench.is_quick ? std::vector<uint32_t>{32, 256} : std::vector<uint32_t>{16, 32, 64, 128, 256, 2048};
    std::vector<double> library;
    for (const uint32_t each : tokens) {
      if (!bench.report.HasTime("cuBLASLt bf16")) return {};
      ASSIGN_OR_RETURN(const double seconds, self.LibraryLayer(each));
      library.push_back(seconds);
    }
    for (const GpuFormat format : {GpuFormat::kW4, GpuFormat::kE4M3, GpuFormat::kW8}) {
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (format != GpuFormat::kW4 && !IsForEveryFormat(tokens[i])) continue;
        const std::string name = Concat("wide_gemm ", NameOf(format), ", ", tokens[i], " tokens");
        if (!bench.report.HasTime(name)) continue;
        RETURN_IF_ERROR(bench.report.SkipOr(name, self.Layer(name, format, tokens[i], library[i])));
      }
    }
    bench.weights.Drop(GpuFormat::kW8);
    return {};
  }

 private:
  explicit WideGemmBench(BenchContext& bench) : bench_(bench) {}

  // Of the other formats some counts of tokens, and of each product the two likeliest shapes.
  static bool IsForEveryFormat(uint32_t tokens) { return tokens == 32 || tokens == 128 || tokens == 2048; }

  Status Allocate() {
    const ModelConfig config = BenchConfig();
    const uint64_t widest = 2 * uint64_t{config.ffn_size};
    ASSIGN_OR_RETURN(x_, CudaBuffer::Device(kMostTokens * config.ffn_size * sizeof(uint16_t), "x"));
    RETURN_IF_CUDA_ERROR(
        FillBF16(x_.as<uint16_t>(), kMostTokens * uint64_t{config.ffn_size}, {.seed = 11}, bench_.stream));
    ASSIGN_OR_RETURN(bf16_, CudaBuffer::Device(kMostTokens * widest * sizeof(uint16_t), "outputs"));
    ASSIGN_OR_RETURN(f32_, CudaBuffer::Device(kMostTokens * sizeof(float) * config.hidden_size, "outputs"));
    RETURN_IF_CUDA_ERROR(cudaMemset(f32_.data(), 0, f32_.bytes()));  // two of the products add to it
    ASSIGN_OR_RETURN(partials_, CudaBuffer::Device(kPartials * sizeof(float), "partial sums"));
    const uint64_t counters = std::max(TileGemmCounters(static_cast<uint32_t>(widest), kMostTileTokens),
                                       WideGemmCounters(static_cast<uint32_t>(widest), kMostWideSplitTokens));
    ASSIGN_OR_RETURN(arrived_, CudaBuffer::Device(counters * sizeof(uint32_t), "counters"));
    RETURN_IF_CUDA_ERROR(cudaMemset(arrived_.data(), 0, arrived_.bytes()));
    ASSIGN_OR_RETURN(scales_, CudaBuffer::Device(kMostTokens * sizeof(float), "scales"));
    RETURN_IF_CUDA_ERROR(
        FillF32(scales_.as<float>(), kMostTokens, {.mean = 0.01f, .deviation = 0.001f}, bench_.stream));
    ASSIGN_OR_RETURN(cublas_, CublasLt::Create());
    return {};
  }

  void* OutputOf(const Product& product) const {
    return product.kind == GpuGemmOut::kAddF32 ? f32_.data() : bf16_.data();
  }
  double LimitOf(const GpuMatrix& m, uint32_t tokens) const {
    const double bytes = static_cast<double>(BytesOf(m)) + 2.0 * tokens * (m.columns + m.rows);
    return std::max(bytes / bench_.limits.copy, 2.0 * tokens * m.rows * m.columns / bench_.limits.matmul);
  }

  // Median seconds of a product, whose matrices of all layers take turns.
  template <typename Queue>
  StatusOr<double> Seconds(const CudaWeights& weights, const Product& product, uint32_t tokens,
                           const Queue& queue) const {
    const GpuMatrix& first = weights.layers[0].*product.matrix;
    const auto most =
        static_cast<uint32_t>(0.6e9 * LimitOf(first, 1) / LimitOf(first, tokens) / BytesOf(first));
    const CallPlan plan = {.calls = std::min(most + 4, static_cast<uint32_t>(weights.layers.size())),
                           .rounds = bench_.is_quick ? 2 : 3,
                           .warm_seconds = 0};
    ASSIGN_OR_RETURN(const Timing timing,
                     TimeCalls(bench_.stream, plan, [&](uint32_t i, const CudaLaunch& how) {
                       const GpuGemmArgs args{.x = x_.as<uint16_t>(),
                                              .tokens = tokens,
                                              .weights = weights.layers[i].*product.matrix,
                                              .out = OutputOf(product),
                                              .kind = product.kind};
                       return queue(args, how);
                     }));
    return timing.seconds;
  }

  Status Layer(const std::string& name, GpuFormat format, uint32_t tokens, double library_seconds) {
    ASSIGN_OR_RETURN(const CudaWeights* weights, bench_.weights.Of(format));
    const TileGemmScratch scratch{partials_.as<float>(), arrived_.as<uint32_t>()};
    double wide = 0, tile = 0, limit = 0;
    for (const Product& product : kProducts) {
      const GpuMatrix& m = weights->layers[0].*product.matrix;
      double best = INFINITY;
      std::vector<WideGemmShape> shapes = WideGemmShapes(m, tokens);
      if (format != GpuFormat::kW4) shapes.resize(std::min<size_t>(shapes.size(), 2));
      for (const WideGemmShape& shape : shapes) {
        if (WideGemmPartialFloats(shape, m.rows, tokens) > kPartials) continue;
        ASSIGN_OR_RETURN(const double seconds, Seconds(*weights, product, tokens,
                                                       [&](const GpuGemmArgs& args, const CudaLaunch& how) {
                                                         return WideGemmCuda(args, shape, scratch, how);
                                                       }));
        best = std::min(best, seconds);
        if (format != GpuFormat::kW4) continue;
        bench_.report.Add({.name = Concat(name, ": ", product.name, ", ", shape.row_groups, " row groups x ",
                                          shape.splits, " splits", shape.scales_sums ? ", scaled sums" : ""),
                           .value = seconds * 1e6,
                           .unit = "us",
                           .fraction = LimitOf(m, tokens) / seconds,
                           .limit = "copy, matmul"});
      }
      wide += best;
      limit += LimitOf(m, tokens);
      if (tokens > kMostTileTokens || TileGemmPartialFloats(m.rows, m.columns, tokens) > kPartials) {
        tile = NAN;
        continue;
      }
      ASSIGN_OR_RETURN(const double seconds, Seconds(*weights, product, tokens,
                                                     [&](const GpuGemmArgs& args, const CudaLaunch& how) {
                                                       return TileGemmCuda(args, scratch, how);
                                                     }));
      tile += seconds;
    }
    bench_.report.Add({.name = name + ": a layer",
                       .value = wide * 1e6,
                       .unit = "us",
                       .fraction = limit / wide,
                       .limit = "copy, matmul"});
    if (std::isfinite(tile)) {
      bench_.report.Add({.name = name + ": a layer of tile_gemm", .value = tile * 1e6, .unit = "us"});
    }
    bench_.report.Add(
        {.name = name + ": times cuBLASLt bf16's speed", .value = library_seconds / wide, .unit = ""});
    if (format == GpuFormat::kW8) RETURN_IF_ERROR(Int8Layer(*weights, tokens, library_seconds));
    return CheckFinite(f32_.as<float>(), uint64_t{tokens} * weights->layers[0].down.rows, name.c_str(),
                       bench_.stream);
  }

  // Of int8 activations, which are the bytes of x; scales of groups stand for those of rows.
  Status Int8Layer(const CudaWeights& weights, uint32_t tokens, double library_seconds) {
    const std::string name = Concat("int8_gemm, ", tokens, " tokens");
    double layer = 0, operations = 0;
    for (const Product& product : kProducts) {
      const GpuMatrix& m = weights.layers[0].*product.matrix;
      ASSIGN_OR_RETURN(const double seconds,
                       Seconds(weights, product, tokens, [&](GpuGemmArgs args, const CudaLaunch& how) {
                         args.weights.has_row_scales = true;
                         return Int8GemmCuda(args, {x_.as<uint8_t>(), scales_.as<float>()}, how);
                       }));
      layer += seconds;
      operations += 2.0 * tokens * m.rows * m.columns;
    }
    bench_.report.Add({.name = name + ": a layer",
                       .value = layer * 1e6,
                       .unit = "us",
                       .fraction = operations / 2 / bench_.limits.matmul / layer,
                       .limit = "twice matmul"});
    bench_.report.Add(
        {.name = name + ": times cuBLASLt bf16's speed", .value = library_seconds / layer, .unit = ""});
    return {};
  }

  StatusOr<double> LibraryLayer(uint32_t tokens) {
    ASSIGN_OR_RETURN(const CudaWeights* weights, bench_.weights.Of(GpuFormat::kBF16));
    double layer = 0;
    for (const Product& product : kProducts) {
      const bool adds = product.kind == GpuGemmOut::kAddF32;
      const auto gemm_of = [&](const GpuMatrix& m) {
        return CublasGemm{.x = x_.data(),
                          .tokens = tokens,
                          .weights = m.codes,
                          .rows = m.rows,
                          .columns = m.columns,
                          .out = OutputOf(product),
                          .out_is_f32 = adds,
                          .add_to_out = adds};
      };
      std::vector<CublasGemm> some;
      for (size_t i = 0; i < std::min<size_t>(weights->layers.size(), 6); ++i) {
        some.push_back(gemm_of(weights->layers[i].*product.matrix));
      }
      RETURN_IF_ERROR(cublas_->Tune(some, bench_.stream).status());
      Status failed;
      ASSIGN_OR_RETURN(
          const double seconds,
          Seconds(*weights, product, tokens, [&](const GpuGemmArgs& args, const CudaLaunch& how) {
            Status status = cublas_->Run(gemm_of(args.weights), how.stream);
            if (!status.ok()) failed = std::move(status);
            return cudaSuccess;
          }));
      RETURN_IF_ERROR(failed);
      layer += seconds;
    }
    bench_.report.Add(
        {.name = Concat("cuBLASLt bf16, ", tokens, " tokens: a layer"), .value = layer * 1e6, .unit = "us"});
    return layer;
  }

  BenchContext& bench_;
  CudaBuffer x_, bf16_, f32_, partials_, arrived_, scales_;
  std::unique_ptr<CublasLt> cublas_;
};

}  // namespace

Status BenchWideGemm(BenchContext& bench) { return WideGemmBench::Run(bench); }

}  // namespace terrace
