#include <algorithm>
#include <memory>
#include <utility>

#include "kernels/activation/gate_mul_cuda.h"
#include "kernels/gemm/dequantize_cuda.h"
#include "kernels/gemm/int8_gemm_cuda.h"
#include "kernels/gemm/sparse_gemm_cuda.h"
#include "kernels/gemm/tile_gemm_cuda.h"
#include "kernels/gemm/wide_gemm_cuda.h"
#include "kernels/quant/quantize_rows_cuda.h"
#include "worker/cuda/cuda_transformer_impl.h"

namespace terrace {

CublasGemm CudaTransformer::Impl::CublasOf(const GpuMatrix& m, const uint16_t* x, uint32_t tokens, void* out,
                                           GpuGemmOut kind) const {
  CublasGemm gemm{.x = x,
                  .tokens = tokens,
                  .weights = m.format == GpuFormat::kBF16 ? m.codes : dequantized,
                  .rows = m.rows,
                  .columns = m.columns,
                  .out = kind == GpuGemmOut::kGated ? gate_up : out,
                  .out_is_f32 = kind == GpuGemmOut::kF32 || kind == GpuGemmOut::kAddF32,
                  .add_to_out = kind == GpuGemmOut::kAddF32};
  if (IsFp8(m, tokens, kind)) {
    gemm.x = codes;
    gemm.x_scales = code_scales;
    gemm.weights = m.codes;
    gemm.weight_scales = static_cast<const float*>(m.scales);
  }
  return gemm;
}

bool CudaTransformer::Impl::IsFp8(const GpuMatrix& m, uint32_t tokens, GpuGemmOut kind) const {
  if (m.format != GpuFormat::kE4M3 || !has_fp8) return false;
  const auto found = fp8_products.find({tokens, m.rows, m.columns, kind});
  return found == fp8_products.end() || found->second;
}

RowCodes CudaTransformer::Impl::CodesRead(const GemmPlan& plan, const GpuMatrix& m, uint32_t tokens,
                                          GpuGemmOut kind) const {
  if (plan.kernel == GemmPlan::Kernel::kInt8) return RowCodes::kInt8;
  if (plan.kernel != GemmPlan::Kernel::kCublas || !IsFp8(m, tokens, kind)) return RowCodes::kNone;
  return fp8_products.contains({tokens, m.rows, m.columns, kind}) ? RowCodes::kE4M3 : RowCodes::kNone;
}

Status CudaTransformer::Impl::MultiplyCublas(const GpuMatrix& m, const uint16_t* x, uint32_t tokens,
                                             void* out, GpuGemmOut kind, const ProductEnds& ends) {
  const bool is_fp8 = IsFp8(m, tokens, kind);
  CHECK(is_fp8 || !ends.has_codes);
  if (is_fp8) {
    if (!ends.has_codes) {
      RETURN_IF_CUDA_ERROR(QuantizeRowsCuda(
          {.x = x, .rows = tokens, .width = m.columns, .out = codes, .scales = code_scales}, launch()));
    }
  } else if (m.format != GpuFormat::kBF16) {
    RETURN_IF_CUDA_ERROR(DequantizeCuda(m, dequantized, launch()));
  }
  const Status status = cublas->Run(CublasOf(m, x, tokens, out, kind), stream.get());
  if (is_fp8 && !ends.has_codes && (status.ok() || status.code() == StatusCode::kUnimplemented)) {
    fp8_products[{tokens, m.rows, m.columns, kind}] = status.ok();
    if (!status.ok()) return MultiplyCublas(m, x, tokens, out, kind, ends);
  }
  RETURN_IF_ERROR(status);
  if (kind != GpuGemmOut::kGated) return {};
  RETURN_IF_CUDA_ERROR(GateMulCuda({.in = gate_up,
                                    .tokens = tokens,
                                    .width = m.rows / 2,
                                    .gate = config.gate,
                                    .out = ends.leaves_codes ? nullptr : static_cast<uint16_t*>(out),
                                    .out_e4m3 = ends.leaves_codes ? codes : nullptr,
                                    .scales = code_scales},
                                   launch()));
  return {};
}

// Of one role, of the format of `like`: as many as do not fit the device's cache together.
std::vector<const GpuMatrix*> CudaTransformer::Impl::MatricesOf(Role role, const GpuMatrix& like) const {
  std::vector<const GpuMatrix*> out;
  for (const CudaLayer& layer : weights.layers) {
    out.push_back(role == Role::kQkv      ? &layer.qkv
                  : role == Role::kOutput ? &layer.output
                  : role == Role::kGateUp ? &layer.gate_up
                                          : &layer.down);
  }
  if (role == Role::kHead) out = {&weights.head};
  std::erase_if(out, [&](const GpuMatrix* m) {
    return m->format != like.format || m->group != like.group || m->has_row_scales != like.has_row_scales;
  });
  uint64_t bytes = 0;
  size_t count = 0;
  while (count < out.size() && bytes < kTuningBytes) {
    bytes +=
        uint64_t{out[count]->rows} * out[count]->columns / (out[count]->format == GpuFormat::kW4 ? 2 : 1);
    ++count;
  }
  out.resize(count);
  return out;
}

// Mean seconds of queue(i), i below count: the better of two rounds behind one that warms up.
StatusOr<double> CudaTransformer::Impl::Time(const std::function<Status(size_t)>& queue, size_t count) const {
  cudaEvent_t begin = nullptr, end = nullptr;
  const auto destroy = [](cudaEvent_t* event) {
    if (*event != nullptr) cudaEventDestroy(*event);
  };
  const std::unique_ptr<cudaEvent_t, decltype(destroy)> owns_begin(&begin), owns_end(&end);
  RETURN_IF_CUDA_ERROR(cudaEventCreate(&begin));
  RETURN_IF_CUDA_ERROR(cudaEventCreate(&end));
  float milliseconds = 0;
  for (int round = 0; round < 3; ++round) {
    RETURN_IF_CUDA_ERROR(cudaEventRecord(begin, stream.get()));
    for (size_t i = 0; i < count; ++i) RETURN_IF_ERROR(queue(i));
    RETURN_IF_CUDA_ERROR(cudaEventRecord(end, stream.get()));
    RETURN_IF_CUDA_ERROR(cudaEventSynchronize(end));
    float one = 0;
    RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&one, begin, end));
    if (round == 1 || (round > 1 && one < milliseconds)) milliseconds = one;
  }
  return milliseconds / 1e3 / static_cast<double>(count);
}

Status CudaTransformer::Impl::MultiplyAs(const GemmPlan& plan, const GpuMatrix& m, const uint16_t* x,
                                         uint32_t tokens, void* out, GpuGemmOut kind,
                                         const ProductEnds& ends) {
  const GpuGemmArgs args{.x = x,
                         .tokens = tokens,
                         .weights = m,
                         .out = out,
                         .kind = kind,
                         .gate = config.gate,
                         .next_norm = ends.next_norm,
                         .next_x = ends.next_norm == nullptr ? nullptr : normed,
                         .next_squares = ends.next_norm == nullptr ? nullptr : squares,
                         .x_squares = ends.divides ? squares : nullptr,
                         .epsilon = config.norm_epsilon};
  switch (plan.kernel) {
    case GemmPlan::Kernel::kCublas:
      return MultiplyCublas(m, x, tokens, out, kind, ends);
    case GemmPlan::Kernel::kStream:
      RETURN_IF_CUDA_ERROR(StreamGemmCuda(args, plan.shape, launch()));
      return {};
    case GemmPlan::Kernel::kOrdered:
      RETURN_IF_CUDA_ERROR(OrderedGemmCuda(args, DefaultOrderedGemmTile(m.rows, tokens), launch()));
      return {};
    case GemmPlan::Kernel::kTile:
      RETURN_IF_CUDA_ERROR(TileGemmCuda(args, {.partials = partials, .arrived = tile_arrived}, launch()));
      return {};
    case GemmPlan::Kernel::kWide:
      RETURN_IF_CUDA_ERROR(
          WideGemmCuda(args, plan.wide, {.partials = partials, .arrived = tile_arrived}, launch()));
      return {};
    case GemmPlan::Kernel::kSparse:
      RETURN_IF_CUDA_ERROR(SparseGemmCuda(args, launch()));
      return {};
    case GemmPlan::Kernel::kInt8:
      if (!ends.has_codes) {
        RETURN_IF_CUDA_ERROR(QuantizeRowsCuda({.x = x,
                                               .rows = tokens,
                                               .width = m.columns,
                                               .out = codes,
                                               .scales = code_scales,
                                               .codes = RowCodes::kInt8},
                                              launch()));
      }
      RETURN_IF_CUDA_ERROR(Int8GemmCuda(args, {.codes = codes, .scales = code_scales}, launch()));
      return {};
  }
  return {};
}

// In the invariant mode a kernel is chosen among those that agree to the bit.
CudaTransformer::Impl::GemmPlan CudaTransformer::Impl::UntimedPlan(Role role, const GpuMatrix& m,
                                                                   uint32_t tokens) const {
  if (is_invariant && tokens > kMostStreamTokens) return {.kernel = GemmPlan::Kernel::kOrdered};
  if (!is_invariant && m.format == GpuFormat::kSparse && tokens > kMostStreamTokens) {
    return {.kernel = GemmPlan::Kernel::kSparse};
  }
  if (!is_invariant && m.has_row_scales && tokens > kMostStreamTokens && role != Role::kHead) {
    return {.kernel = GemmPlan::Kernel::kInt8};
  }
  if (!is_invariant && m.format != GpuFormat::kSparse && CanCublas(role, m, tokens)) return {};
  return {.kernel = GemmPlan::Kernel::kStream,
          .shape = DefaultStreamGemmShape(m.rows, m.columns, m.format, tokens)};
}

CudaTransformer::Impl::GemmPlan CudaTransformer::Impl::RouterPlan(const GpuMatrix& m, uint32_t tokens) {
  if (tokens > kMostStreamTokens) return {.kernel = GemmPlan::Kernel::kOrdered};
  return {.kernel = GemmPlan::Kernel::kStream,
          .shape = DefaultStreamGemmShape(m.rows, m.columns, m.format, tokens)};
}

// Times what could make a product of this shape on the model's own matrices, into memory that holds nothing
// yet.
StatusOr<CudaTransformer::Impl::GemmPlan> CudaTransformer::Impl::TimedPlan(Role role, const GpuMatrix& m,
                                                                           const uint16_t* x, uint32_t tokens,
                                                                           GpuGemmOut kind) {
  using Kernel = GemmPlan::Kernel;
  GemmPlan best = UntimedPlan(role, m, tokens);
  const bool can_cublas = CanCublas(role, m, tokens);
  // Sizes that come again: decode steps and full chunks. Another takes cuBLASLt's first guess.
  const bool is_timed = tokens <= kMostStreamTokens || std::has_single_bit(tokens) ||
                        (tokens <= kMostGraphTokens && TokenBucket(tokens) == tokens);
  // Ranks wait for the one that times for longest, within the group's timeout: they time what is short.
  const bool is_too_long = group != nullptr && tokens > kMostGraphTokens;
  if (is_invariant || !is_timed || is_too_long) return best;
  step.is_first_of_its_kind = true;
  // Half of attention's partial sums may be tile_gemm's and wide_gemm's; the other half stands for the
  // residual stream.
  const uint64_t outputs = uint64_t{tokens} * m.rows;
  void* out = role == Role::kHead ? static_cast<void*>(logits) : static_cast<void*>(qkv);
  if (kind == GpuGemmOut::kAddF32 || (kind == GpuGemmOut::kF32 && role != Role::kHead)) {
    if (outputs > kDevicePartialFloats / 2) return best;
    out = partials + kDevicePartialFloats / 2;
    RETURN_IF_CUDA_ERROR(cudaMemsetAsync(out, 0, outputs * sizeof(float), stream.get()));
  } else if (kind == GpuGemmOut::kGated) {
    out = gate;
  }
  const std::vector<const GpuMatrix*> all = MatricesOf(role, m);
  std::vector<GemmPlan> candidates;
  if (can_cublas) {
    RETURN_IF_ERROR(MultiplyCublas(m, x, tokens, out, kind, {}));  // finds out whether there is one of FP8
    std::vector<CublasGemm> samples;
    for (const GpuMatrix* each : all) samples.push_back(CublasOf(*each, x, tokens, out, kind));
    RETURN_IF_ERROR(cublas->Tune(samples, stream.get()).status());
    candidates.push_back({});
  }
  if (tokens <= kMostStreamTokens || !can_cublas) {
    for (const StreamGemmShape& each : StreamGemmShapes(tokens)) {
      candidates.push_back({.kernel = Kernel::kStream, .shape = each});
    }
  }
  if (m.format == GpuFormat::kSparse && tokens >= kLeastTileTokens) {
    candidates.push_back({.kernel = Kernel::kSparse});
  }
  if (m.has_row_scales && tokens > kMostStreamTokens && role != Role::kHead) {
    candidates.push_back({.kernel = Kernel::kInt8});
  }
  const bool has_codes = m.format != GpuFormat::kBF16 && m.format != GpuFormat::kSparse;
  if (has_codes && m.rows >= kTileWarpRows && tokens >= kLeastTileTokens && tokens <= kMostTileTokens &&
      TileGemmPartialFloats(m.rows, m.columns, tokens) <= kDevicePartialFloats / 2) {
    candidates.push_back({.kernel = Kernel::kTile});
  }
  if (has_codes && tokens >= kLeastTileTokens && HasWarpgroups()) {
    for (const WideGemmShape& each : WideGemmShapes(m, tokens)) {
      if (WideGemmPartialFloats(each, m.rows, tokens) > kDevicePartialFloats / 2) continue;
      candidates.push_back({.kernel = Kernel::kWide, .wide = each});
    }
  }
  double best_seconds = -1;
  Status last_error;
  for (const GemmPlan& candidate : candidates) {
    // What a norm makes comes as codes to whoever reads these.
    const bool is_of_norm = role == Role::kQkv || role == Role::kGateUp;
    const ProductEnds ends{.has_codes =
                               is_of_norm && CodesRead(candidate, m, tokens, kind) != RowCodes::kNone};
    const auto seconds = Time(
        [&](size_t i) { return MultiplyAs(candidate, *all[i], x, tokens, out, kind, ends); }, all.size());
    if (!seconds.ok()) {  // not on this device
      cudaGetLastError();
      last_error = seconds.status();
      continue;
    }
    if (best_seconds >= 0 && *seconds >= best_seconds) continue;
    best_seconds = *seconds;
    best = candidate;
  }
  if (best_seconds < 0) return last_error;
  return best;
}

StatusOr<CudaTransformer::Impl::GemmPlan> CudaTransformer::Impl::PlanOf(Role role, const GpuMatrix& m,
                                                                        const uint16_t* x, uint32_t tokens,
                                                                        GpuGemmOut kind) {
  const uint32_t like = tokens <= kMostStreamTokens ? std::min(TokenBucket(tokens), max_tokens()) : tokens;
  const auto key = std::make_tuple(role, like, kind, m.format, m.group, m.has_row_scales);
  KnownShape& known =
      plans.try_emplace(key, KnownShape{.plan = UntimedPlan(role, m, like), .first_step = steps})
          .first->second;
  if (step.may_time && !known.is_timed && (step.as_graph || known.first_step != steps)) {
    ASSIGN_OR_RETURN(known.plan, TimedPlan(role, m, x, like, kind));
    known.is_timed = true;
  }
  return known.plan;
}

// Those of QueueLayer and QueueHead.
Status CudaTransformer::Impl::PlanProducts(uint32_t tokens, uint32_t wanted) {
  for (const CudaLayer& layer : weights.layers) {
    RETURN_IF_ERROR(PlanOf(Role::kQkv, layer.qkv, normed, tokens, GpuGemmOut::kBF16).status());
    RETURN_IF_ERROR(PlanOf(Role::kOutput, layer.output, attended, tokens, ResidualOut()).status());
    if (config.experts > 0) continue;  // nothing of them is timed
    RETURN_IF_ERROR(PlanOf(Role::kGateUp, layer.gate_up, normed, tokens, GpuGemmOut::kGated).status());
    RETURN_IF_ERROR(PlanOf(Role::kDown, layer.down, gate, tokens, ResidualOut()).status());
  }
  for (uint32_t begin = 0; begin < wanted; begin += logit_rows()) {
    const uint32_t count = std::min(logit_rows(), wanted - begin);
    RETURN_IF_ERROR(PlanOf(Role::kHead, weights.head, last_normed, count, GpuGemmOut::kF32).status());
  }
  return {};
}

Status CudaTransformer::Impl::Multiply(Role role, const GpuMatrix& m, const uint16_t* x, uint32_t tokens,
                                       void* out, GpuGemmOut kind, const ProductEnds& ends) {
  ASSIGN_OR_RETURN(const GemmPlan plan, PlanOf(role, m, x, tokens, kind));
  return MultiplyAs(plan, m, x, tokens, out, kind, ends);
}

}  // namespace terrace
