// Products of the layers of Llama 3.1 8B's shape with 2:4 weights: of many tokens beside cuBLASLt's with
// dense bf16 weights, of few against the bytes that are read; and what makes them dense.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/gemm/dequantize_cuda.h"
#include "kernels/gemm/sparse_gemm_cuda.h"
#include "kernels/gemm/stream_gemm_cuda.h"
#include "tests/gpu/bench_arrays.h"
#include "tests/gpu/bench_model.h"
#include "worker/cuda/cublas_gemm.h"

namespace terrace {
namespace {

constexpr uint32_t kMostTokens = 4096;
constexpr uint32_t kMatrices = 6;  // that take turns: together beyond the device's cache

// The gate is left to others: cuBLASLt's products do not have it.
struct Product {
  const GpuMatrix CudaLayer::*matrix;
  bool adds;
};
constexpr Product kProducts[] = {{&CudaLayer::qkv, false},
                                 {&CudaLayer::output, true},
                                 {&CudaLayer::gate_up, false},
                                 {&CudaLayer::down, true}};

class SparseBench {
 public:
  static Status Run(BenchContext& bench) {
    SparseBench self(bench);
    RETURN_IF_ERROR(self.Allocate());
    const std::vector<uint32_t> many =
        bench.is_quick ? std::vector<uint32_t>{2048} : std::vector<uint32_t>{1024, 2048, kMostTokens};
    for (const uint32_t tokens : many) {
      const std::string name = Concat("2:4 gemm, ", tokens, " tokens");
      if (!bench.report.HasTime(name)) continue;
      RETURN_IF_ERROR(bench.report.SkipOr(name, self.Many(name, tokens)));
    }
    for (const uint32_t tokens : {1u, 8u}) {
      const std::string name = Concat("2:4 gemm, ", tokens, tokens == 1 ? " token" : " tokens");
      if (!bench.report.HasTime(name)) continue;
      RETURN_IF_ERROR(bench.report.SkipOr(name, self.Few(name, tokens)));
    }
    const std::string name = "2:4 to bf16, 28672 x 4096";
    if (bench.report.HasTime(name)) RETURN_IF_ERROR(bench.report.SkipOr(name, self.Spread(name)));
    bench.weights.Drop(GpuFormat::kSparse);
    return {};
  }

 private:
  explicit SparseBench(BenchContext& bench) : bench_(bench) {}

  Status Allocate() {
    const ModelConfig config = BenchConfig();
    const uint64_t width = config.ffn_size, hidden = config.hidden_size;
    ASSIGN_OR_RETURN(x_, CudaBuffer::Device(kMostTokens * width * sizeof(uint16_t), "x"));
    RETURN_IF_CUDA_ERROR(FillBF16(x_.as<uint16_t>(), kMostTokens * width, {.seed = 11}, bench_.stream));
    ASSIGN_OR_RETURN(bf16_, CudaBuffer::Device(kMostTokens * 2 * width * sizeof(uint16_t), "outputs"));
    ASSIGN_OR_RETURN(f32_, CudaBuffer::Device(kMostTokens * hidden * sizeof(float), "outputs"));
    RETURN_IF_CUDA_ERROR(cudaMemset(f32_.data(), 0, f32_.bytes()));  // two of the products add to it
    ASSIGN_OR_RETURN(cublas_, CublasLt::Create());
    return {};
  }

  void* OutputOf(const Product& product) const { return product.adds ? f32_.data() : bf16_.data(); }

  // Median seconds of a product, whose matrices of some layers take turns.
  template <typename Queue>
  StatusOr<double> Seconds(uint32_t calls, const Queue& queue) const {
    const CallPlan plan = {
        .calls = calls, .rounds = bench_.is_quick ? 2 : bench_.rounds, .warm_seconds = 0.005};
    ASSIGN_OR_RETURN(const Timing timing, TimeCalls(bench_.stream, plan, queue));
    return timing.seconds;
  }
  template <typename Multiply>
  StatusOr<double> SparseSeconds(const Product& product, uint32_t tokens, uint32_t calls,
                                 const Multiply& multiply) {
    ASSIGN_OR_RETURN(const CudaWeights* weights, bench_.weights.Of(GpuFormat::kSparse));
    return Seconds(calls, [&](uint32_t i, const CudaLaunch& how) {
      return multiply(GpuGemmArgs{.x = x_.as<uint16_t>(),
                                  .tokens = tokens,
                                  .weights = weights->layers[i % weights->layers.size()].*product.matrix,
                                  .out = OutputOf(product),
                                  .kind = product.adds ? GpuGemmOut::kAddF32 : GpuGemmOut::kBF16},
                      how);
    });
  }

  StatusOr<double> DenseSeconds(const Product& product, uint32_t tokens) {
    ASSIGN_OR_RETURN(const CudaWeights* weights, bench_.weights.Of(GpuFormat::kBF16));
    std::vector<CublasGemm> gemms;
    for (uint32_t i = 0; i < kMatrices; ++i) {
      const GpuMatrix& m = weights->layers[i].*product.matrix;
      gemms.push_back({.x = x_.data(),
                       .tokens = tokens,
                       .weights = m.codes,
                       .rows = m.rows,
                       .columns = m.columns,
                       .out = OutputOf(product),
                       .out_is_f32 = product.adds,
                       .add_to_out = product.adds});
    }
    RETURN_IF_ERROR(cublas_->Tune(gemms, bench_.stream).status());
    Status failed;
    const auto seconds = Seconds(kMatrices, [&](uint32_t i, const CudaLaunch& how) {
      Status status = cublas_->Run(gemms[i], how.stream);
      if (!status.ok()) failed = std::move(status);
      return cudaSuccess;
    });
    RETURN_IF_ERROR(failed);
    return seconds;
  }

  Status Many(const std::string& name, uint32_t tokens) {
    double sparse = 0, dense = 0, operations = 0;
    ASSIGN_OR_RETURN(const CudaWeights* weights, bench_.weights.Of(GpuFormat::kSparse));
    for (const Product& product : kProducts) {
      const GpuMatrix& m = weights->layers[0].*product.matrix;
      ASSIGN_OR_RETURN(const double of_sparse, SparseSeconds(product, tokens, kMatrices, SparseGemmCuda));
      ASSIGN_OR_RETURN(const double of_dense, DenseSeconds(product, tokens));
      sparse += of_sparse;
      dense += of_dense;
      operations += 2.0 * tokens * m.rows * m.columns;
    }
    bench_.report.Add({.name = name + ": a layer",
                       .value = sparse * 1e6,
                       .unit = "us",
                       .fraction = operations / 2 / bench_.limits.matmul / sparse,
                       .limit = "twice matmul"});
    bench_.report.Add({.name = name + ": times cuBLASLt bf16's speed",
                       .value = dense / sparse,
                       .unit = "",
                       .goal = BenchGoal::AtLeast(1.35)});
    return CheckFinite(f32_.as<float>(), uint64_t{tokens} * BenchConfig().hidden_size, name.c_str(),
                       bench_.stream);
  }

  Status Few(const std::string& name, uint32_t tokens) {
    double seconds = 0, bytes = 0;
    ASSIGN_OR_RETURN(const CudaWeights* weights, bench_.weights.Of(GpuFormat::kSparse));
    const auto calls = static_cast<uint32_t>(weights->layers.size());
    for (const Product& product : kProducts) {
      const GpuMatrix& m = weights->layers[0].*product.matrix;
      const StreamGemmShape shape = DefaultStreamGemmShape(m.rows, m.columns, m.format, tokens);
      ASSIGN_OR_RETURN(const double each, SparseSeconds(product, tokens, calls,
                                                        [&](const GpuGemmArgs& args, const CudaLaunch& how) {
                                                          return StreamGemmCuda(args, shape, how);
                                                        }));
      seconds += each;
      bytes += static_cast<double>(BytesOf(m)) + 2.0 * tokens * (m.columns + m.rows);
    }
    bench_.report.Add({.name = name + ": a layer of stream_gemm",
                       .value = seconds * 1e6,
                       .unit = "us",
                       .fraction = bytes / bench_.limits.copy / seconds,
                       .limit = "copy"});
    return {};
  }

  // The largest matrix of a layer, for products that take it dense.
  Status Spread(const std::string& name) {
    ASSIGN_OR_RETURN(const CudaWeights* weights, bench_.weights.Of(GpuFormat::kSparse));
    const GpuMatrix& one = weights->layers[0].gate_up;
    const uint64_t elements = uint64_t{one.rows} * one.columns;
    ASSIGN_OR_RETURN(const CudaBuffer out, CudaBuffer::Device(elements * sizeof(uint16_t), "dense weights"));
    RETURN_IF_CUDA_ERROR(cudaMemset(out.data(), 0xff, out.bytes()));  // NaN
    ASSIGN_OR_RETURN(const double seconds, Seconds(kMatrices, [&](uint32_t i, const CudaLaunch& how) {
                       return DequantizeCuda(weights->layers[i % kMatrices].gate_up, out.as<uint16_t>(), how);
                     }));
    const double bytes = static_cast<double>(BytesOf(one)) + 2.0 * elements;
    bench_.report.Add({.name = name,
                       .value = seconds * 1e6,
                       .unit = "us",
                       .fraction = bytes / bench_.limits.copy / seconds,
                       .limit = "copy",
                       .goal = BenchGoal::Fraction(0.80)});
    return CheckFinite(out.as<uint16_t>(), elements, name.c_str(), bench_.stream);
  }

  BenchContext& bench_;
  CudaBuffer x_, bf16_, f32_;
  std::unique_ptr<CublasLt> cublas_;
};

}  // namespace

Status BenchSparse(BenchContext& bench) { return SparseBench::Run(bench); }

}  // namespace terrace
