#include "worker/cuda/cuda_transformer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "kernels/activation/silu_mul_cuda.h"
#include "kernels/attention/decode_attention_cuda.h"
#include "kernels/attention/prefill_attention_cuda.h"
#include "kernels/copy/kv_copy_cuda.h"
#include "kernels/embed/embed_cuda.h"
#include "kernels/gemm/dequantize_cuda.h"
#include "kernels/gemm/stream_gemm_cuda.h"
#include "kernels/gemm/tile_gemm_cuda.h"
#include "kernels/norm/rms_norm_cuda.h"
#include "kernels/quant/quantize_rows_cuda.h"
#include "kernels/rope/rope_kv_cuda.h"
#include "kernels/rope/rope_table.h"
#include "kernels/sample/sample_cuda.h"
#include "worker/cuda/cublas_gemm.h"

namespace terrace {
namespace {

// Sequences of at most so many tokens go through decode attention, token by token.
constexpr size_t kMostDecodeTokens = 8;
// More tokens than this never go through stream_gemm, but in the invariant mode.
constexpr uint32_t kMostStreamTokens = 64;
// Tokens for which tile_gemm is tried on quantized weights.
constexpr uint32_t kLeastTileTokens = 9, kMostTileTokens = 512;
// Steps of at most so many tokens are replayed as graphs.
constexpr uint32_t kMostGraphTokens = 512;
constexpr size_t kMostGraphs = 256;  // kept at a time: some MB each
// Logits are made of so many rows at a time.
constexpr uint32_t kLogitRows = 512;
constexpr uint64_t kPartialFloats = uint64_t{64} << 20;  // of decode attention: 256 MiB
// Matrices timed to choose an algorithm: together beyond the device's cache.
constexpr uint64_t kTuningBytes = uint64_t{192} << 20;

uint64_t Aligned(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

// Steps of a graph: rounded up, so that few graphs serve all batches. At most an eighth more beyond 8.
uint32_t TokenBucket(uint32_t tokens) {
  if (tokens <= 8) return tokens;
  const uint32_t step = std::bit_floor(tokens - 1) / 4;
  return (tokens + step - 1) / step * step;
}

// Lays arrays out one behind the other, at multiples of 256 bytes.
class Layout {
 public:
  template <typename T>
  uint64_t Add(uint64_t count) {
    return std::exchange(bytes_, Aligned(bytes_ + count * sizeof(T)));
  }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t bytes_ = 0;
};

// What a step's description consists of, as offsets into the staging memory of host and device.
struct StepLayout {
  uint64_t tokens, positions, sequences, wanted, runs, choices, adjustments;  // these last
  StepLayout(uint32_t token_count, uint32_t wanted_count, uint32_t run_count) {
    Layout layout;
    tokens = layout.Add<int32_t>(token_count);
    positions = layout.Add<uint32_t>(token_count);
    sequences = layout.Add<uint32_t>(token_count);
    wanted = layout.Add<uint32_t>(wanted_count);
    runs = layout.Add<GpuQueryRun>(run_count);
    choices = layout.Add<GpuSampleRow>(wanted_count);
    adjustments = layout.bytes();
  }
};

// What of choosing tokens some row of a step needs, beside the largest logit.
struct Sampling {
  bool draws = false, tops = false;
};

enum class Role : uint8_t { kQkv, kOutput, kGateUp, kDown, kHead };

// How a product of one shape is made.
struct GemmPlan {
  enum class Kernel : uint8_t { kCublas, kStream, kTile };
  Kernel kernel = Kernel::kCublas;
  StreamGemmShape shape;  // of kStream
};

// How a product of the layers takes part in RMSNorm, where no kernel does it (gpu_gemm.h).
struct NormPart {
  bool divides = false;              // its x is not yet divided
  const float* next_norm = nullptr;  // it leaves the x of the next product
};

Status Unsupported(const std::string& what) {
  return WithReason(Unimplemented("CUDA: ", what), "unsupported_device");
}

}  // namespace

struct CudaTransformer::Impl {
  const ModelConfig config;
  const CudaWeights& weights;
  const KvShape shape;
  const DeviceLimits limits;
  const bool is_invariant;
  bool can_follow = false;  // programmatic dependent launch: sm_90
  bool has_fp8 = false;     // products of FP8: sm_89
  std::set<std::tuple<uint32_t, uint32_t, uint32_t, GpuGemmOut>>
      fp8_refused;  // tokens, rows, columns: cuBLASLt has none
  CudaStream stream;
  std::unique_ptr<CublasLt> cublas;

  // Of the KV pool; a block more than the shape says, for rows that pad a graph's batch.
  CudaBuffer pool, pool_parts, host_pool;
  // On their way between the pool and the host blocks lie together in one of these, in turns: the kernel that
  // gathers or scatters one and the copy of the other, on a stream of its own, go on at once.
  struct Slot {
    CudaBuffer block;
    cudaEvent_t gathered = nullptr, copied = nullptr;  // by the kernel; by the copy
  };
  std::array<Slot, 2> slots;
  size_t next_slot = 0;
  CudaStream copies;
  std::vector<GpuKvPart> parts;
  uint32_t pool_blocks = 0, table_pitch = 0;

  CudaBuffer scratch, rope, staging, staging_pinned, tables, tables_pinned, sample_scratch, results,
      results_pinned;
  float* squares = nullptr;  // [kMostNormTokens, hidden / kTileRows]
  float *hidden = nullptr, *logits = nullptr, *partials = nullptr, *cos = nullptr, *sin = nullptr;
  uint16_t *normed = nullptr, *qkv = nullptr, *attended = nullptr, *gate_up = nullptr, *gate = nullptr,
           *last_normed = nullptr, *dequantized = nullptr;
  uint8_t* codes = nullptr;      // activations in FP8, [tokens, widest]
  float* code_scales = nullptr;  // [tokens]
  uint32_t *arrived = nullptr, *tile_arrived = nullptr;
  uint64_t arrived_count = 0;

  // By role, tokens, output, and the weights' format and group: layers may differ in these.
  std::map<std::tuple<Role, uint32_t, GpuGemmOut, GpuFormat, uint32_t>, GemmPlan> plans;
  struct Graph {
    cudaGraphExec_t exec = nullptr;
  };
  std::map<std::tuple<uint32_t, uint32_t, int>, Graph> graphs;  // tokens, spans, how tokens are chosen
  cudaEvent_t step_begin = nullptr, step_end = nullptr;

  // Of the step that is being described.
  struct Step {
    uint32_t tokens = 0, decode_tokens = 0, wanted = 0, runs = 0, most_spans = 1, sequences = 0;
    uint32_t table_columns = 0;
    bool tables_changed = false;
    Sampling samples;
    bool wants_logits = false;
  } step;
  uint32_t result_rows = 0;
  std::vector<float> host_logits;  // of steps that want more rows than fit
  bool logits_on_host = false;

  Impl(const ModelConfig& c, const CudaWeights& w, const KvShape& s, const DeviceLimits& l, bool invariant)
      : config(c), weights(w), shape(s), limits(l), is_invariant(invariant) {}
  ~Impl() {
    for (const CudaStream* each : {&stream, &copies}) {
      if (each->get() != nullptr) cudaStreamSynchronize(each->get());
    }
    for (Slot& slot : slots) {
      if (slot.gathered != nullptr) cudaEventDestroy(slot.gathered);
      if (slot.copied != nullptr) cudaEventDestroy(slot.copied);
    }
    ForgetGraphs();
    if (step_begin != nullptr) cudaEventDestroy(step_begin);
    if (step_end != nullptr) cudaEventDestroy(step_end);
  }

  void ForgetGraphs() {
    for (auto& [key, graph] : graphs) {
      if (graph.exec != nullptr) cudaGraphExecDestroy(graph.exec);
    }
    graphs.clear();
  }
  uint32_t q_width() const { return config.heads * config.head_dim; }
  uint32_t kv_width() const { return config.kv_heads * config.head_dim; }
  uint32_t max_tokens() const { return std::max(limits.max_step_tokens, limits.max_sequences); }
  uint32_t logit_rows() const { return std::min(kLogitRows, std::max(max_tokens(), 1u)); }
  CudaLaunch launch() const { return {.stream = stream.get(), .follows = can_follow}; }

  Status Allocate();
  KvLayer Layer(uint32_t layer) const;
  GpuBatch BatchOf(const StepLayout& layout, uint32_t tokens) const;

  Status Describe(const Batch& batch, const Choice* choice, const StepLayout& layout, uint32_t token_count,
                  uint32_t wanted_count);
  Status UploadTables();
  Status Upload(uint64_t begin, uint64_t end);  // these bytes of what describes the step
  Status Download(uint32_t rows);
  Status Queue(const StepLayout& layout, uint32_t tokens, uint32_t decode_tokens, uint32_t runs,
               uint32_t wanted, uint32_t spans, bool has_choice, Sampling samples);
  Status QueueLayer(uint32_t index, const GpuBatch& batch, const StepLayout& layout, uint32_t decode_tokens,
                    uint32_t runs, uint32_t spans);
  Status Attend(const GpuBatch& batch, const KvLayer& kv, const StepLayout& layout, uint32_t decode_tokens,
                uint32_t runs, uint32_t spans);
  Status QueueHead(const StepLayout& layout, uint32_t wanted, bool has_choice, Sampling samples);
  // Without norms of their own the residual stream's products are stream_gemm's.
  bool FusesNorms(uint32_t tokens) const { return !is_invariant && tokens <= kMostNormTokens; }
  Status Multiply(Role role, const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens, void* out,
                  GpuGemmOut kind, const NormPart& norm = {});
  Status MultiplyCublas(const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens, void* out,
                        GpuGemmOut kind);
  CublasGemm CublasOf(const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens, void* out,
                      GpuGemmOut kind) const;
  bool IsFp8(const GpuMatrix& matrix, uint32_t tokens, GpuGemmOut kind) const;
  StatusOr<GemmPlan> PlanFor(Role role, const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens,
                             GpuGemmOut kind);
  std::vector<const GpuMatrix*> MatricesOf(Role role, const GpuMatrix& like) const;
  Status MultiplyAs(const GemmPlan& plan, const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens,
                    void* out, GpuGemmOut kind, const NormPart& norm = {});
  StatusOr<double> Time(const std::function<Status(size_t)>& queue, size_t count) const;
  Status MoveBlock(const Slot& slot, uint32_t block, bool to_pool);
  Status QueueAsGraph(const StepLayout& layout, uint32_t tokens, uint32_t spans, Sampling samples);
};

// ---- Memory

uint64_t CudaTransformer::ScratchBytes(const ModelConfig& c, const CudaWeights& weights,
                                       const DeviceLimits& limits) {
  const uint64_t tokens = std::max(limits.max_step_tokens, limits.max_sequences);
  const uint64_t q = uint64_t{c.heads} * c.head_dim, kv = uint64_t{c.kv_heads} * c.head_dim;
  const uint64_t per_token =
      8ull * c.hidden_size + c.ffn_size + 2ull * c.hidden_size + 2 * (q + 2 * kv) + 2 * q + 6ull * c.ffn_size;
  const uint64_t rows = std::min<uint64_t>(kLogitRows, std::max<uint64_t>(tokens, 1));
  uint64_t dequantized = 0;
  for (const CudaLayer& layer : weights.layers) {
    for (const GpuMatrix& m : {layer.qkv, layer.output, layer.gate_up, layer.down}) {
      if (m.format != GpuFormat::kBF16) dequantized = std::max(dequantized, uint64_t{2} * m.rows * m.columns);
    }
  }
  return tokens * per_token + rows * (4ull * c.vocab_size + 2ull * c.hidden_size) + dequantized +
         4 * kPartialFloats + GpuSampleScratchBytes(static_cast<uint32_t>(rows), c.vocab_size) +
         4ull * limits.context_length * c.head_dim + (uint64_t{128} << 20) +
         16ull * limits.max_sequences * (limits.context_length / 16 + 1) +
         sizeof(GpuLogitAdjustment) * kMostAdjustments;
}

Status CudaTransformer::Impl::Allocate() {
  const uint64_t tokens = max_tokens(), rows = logit_rows();
  // The pool: per layer keys and values [kv_heads, blocks, block_tokens, head_dim], then scales of int8.
  pool_blocks = shape.blocks + 1;
  const uint64_t row_bytes = shape.head_dim * KvElementBytes(shape.dtype);
  const uint64_t pool_rows = uint64_t{shape.kv_heads} * pool_blocks * shape.block_tokens;
  const uint64_t data = Aligned(pool_rows * row_bytes);
  const uint64_t scales = HasScales(shape.dtype) ? Aligned(pool_rows * sizeof(float)) : 0;
  ASSIGN_OR_RETURN(pool, CudaBuffer::Device(2 * shape.layers * (data + scales), "KV cache"));
  uint32_t staged_at = 0;
  const auto add_part = [&](std::byte* data_of_part, uint64_t bytes_of_row) {
    parts.push_back({.data = data_of_part,
                     .bytes = static_cast<uint32_t>(shape.block_tokens * bytes_of_row),
                     .row_bytes = static_cast<uint32_t>(bytes_of_row),
                     .staged_at = staged_at});
    staged_at += shape.kv_heads * parts.back().bytes;
  };
  for (uint32_t i = 0; i < 2 * shape.layers; ++i) {
    std::byte* const at = pool.data() + i * (data + scales);
    add_part(at, row_bytes);
    if (scales > 0) add_part(at + data, sizeof(float));
  }
  ASSIGN_OR_RETURN(pool_parts, CudaBuffer::Device(parts.size() * sizeof(GpuKvPart), "KV parts"));
  RETURN_IF_CUDA_ERROR(
      cudaMemcpy(pool_parts.data(), parts.data(), parts.size() * sizeof(GpuKvPart), cudaMemcpyHostToDevice));
  if (shape.host_blocks > 0) {
    ASSIGN_OR_RETURN(host_pool, CudaBuffer::Pinned(shape.host_blocks * shape.BlockBytes(), "KV swap memory"));
    ASSIGN_OR_RETURN(copies, CudaStream::Create());
    for (Slot& slot : slots) {
      ASSIGN_OR_RETURN(slot.block, CudaBuffer::Device(shape.BlockBytes(), "KV staging"));
      RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&slot.gathered, cudaEventDisableTiming));
      RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
    }
  }

  uint64_t widest = 0, code_width = 0;
  uint32_t most_rows = weights.head.rows;
  for (const CudaLayer& layer : weights.layers) {
    for (const GpuMatrix& m : {layer.qkv, layer.output, layer.gate_up, layer.down}) {
      if (m.format != GpuFormat::kBF16) widest = std::max(widest, uint64_t{m.rows} * m.columns);
      most_rows = std::max(most_rows, m.rows);
      if (m.format == GpuFormat::kE4M3) code_width = std::max(code_width, uint64_t{m.columns});
    }
  }
  arrived_count = tokens * config.kv_heads;
  Layout layout;
  const uint64_t at_hidden = layout.Add<float>(tokens * config.hidden_size);
  const uint64_t at_normed = layout.Add<uint16_t>(tokens * config.hidden_size);
  const uint64_t at_squares = layout.Add<float>(uint64_t{kMostNormTokens} * config.hidden_size / kTileRows);
  const uint64_t at_qkv = layout.Add<uint16_t>(tokens * (q_width() + 2 * kv_width()));
  const uint64_t at_attended = layout.Add<uint16_t>(tokens * q_width());
  const uint64_t at_gate_up = layout.Add<uint16_t>(tokens * 2 * config.ffn_size);
  const uint64_t at_gate = layout.Add<uint16_t>(tokens * config.ffn_size);
  const uint64_t at_last = layout.Add<uint16_t>(rows * config.hidden_size);
  const uint64_t at_logits = layout.Add<float>(rows * config.vocab_size);
  const uint64_t at_partials = layout.Add<float>(kPartialFloats);
  const uint64_t at_arrived = layout.Add<uint32_t>(arrived_count);
  const uint64_t tile_counters = TileGemmCounters(most_rows, kMostTileTokens);
  const uint64_t at_tile_arrived = layout.Add<uint32_t>(tile_counters);
  const uint64_t at_dequantized = layout.Add<uint16_t>(widest);
  const uint64_t at_codes = layout.Add<uint8_t>(tokens * code_width);
  const uint64_t at_code_scales = layout.Add<float>(tokens);
  ASSIGN_OR_RETURN(scratch, CudaBuffer::Device(layout.bytes(), "activations"));
  hidden = scratch.as<float>(at_hidden);
  normed = scratch.as<uint16_t>(at_normed);
  squares = scratch.as<float>(at_squares);
  qkv = scratch.as<uint16_t>(at_qkv);
  attended = scratch.as<uint16_t>(at_attended);
  gate_up = scratch.as<uint16_t>(at_gate_up);
  gate = scratch.as<uint16_t>(at_gate);
  last_normed = scratch.as<uint16_t>(at_last);
  logits = scratch.as<float>(at_logits);
  partials = scratch.as<float>(at_partials);
  arrived = scratch.as<uint32_t>(at_arrived);
  tile_arrived = scratch.as<uint32_t>(at_tile_arrived);
  RETURN_IF_CUDA_ERROR(cudaMemset(tile_arrived, 0, tile_counters * sizeof(uint32_t)));
  dequantized = scratch.as<uint16_t>(at_dequantized);
  codes = scratch.as<uint8_t>(at_codes);
  code_scales = scratch.as<float>(at_code_scales);
  RETURN_IF_CUDA_ERROR(cudaMemset(arrived, 0, arrived_count * sizeof(uint32_t)));

  const uint64_t angles = uint64_t{limits.context_length} * (config.head_dim / 2);
  ASSIGN_OR_RETURN(rope, CudaBuffer::Device(2 * angles * sizeof(float), "RoPE tables"));
  cos = rope.as<float>();
  sin = cos + angles;
  {
    ThreadPool threads(1);
    const RopeTable table = MakeRopeTable(limits.context_length, config.rope_base, config.head_dim, threads);
    RETURN_IF_CUDA_ERROR(cudaMemcpy(cos, table.cos.data(), angles * sizeof(float), cudaMemcpyHostToDevice));
    RETURN_IF_CUDA_ERROR(cudaMemcpy(sin, table.sin.data(), angles * sizeof(float), cudaMemcpyHostToDevice));
  }

  const StepLayout largest(static_cast<uint32_t>(tokens + kMostGraphTokens),
                           static_cast<uint32_t>(tokens + kMostGraphTokens), static_cast<uint32_t>(tokens));
  const uint64_t staged = largest.adjustments + kMostAdjustments * sizeof(GpuLogitAdjustment);
  ASSIGN_OR_RETURN(staging, CudaBuffer::Device(staged, "step"));
  ASSIGN_OR_RETURN(staging_pinned, CudaBuffer::Pinned(staged, "step"));
  table_pitch = (limits.context_length + shape.block_tokens - 1) / shape.block_tokens;
  const uint64_t table_bytes = uint64_t{limits.max_sequences + 1} * table_pitch * sizeof(int32_t);
  ASSIGN_OR_RETURN(tables, CudaBuffer::Device(table_bytes, "block tables"));
  ASSIGN_OR_RETURN(tables_pinned, CudaBuffer::Pinned(table_bytes, "block tables"));
  std::memset(tables_pinned.data(), 0xff, table_bytes);  // no block: whatever is used is new to the device
  ASSIGN_OR_RETURN(
      sample_scratch,
      CudaBuffer::Device(GpuSampleScratchBytes(static_cast<uint32_t>(rows), config.vocab_size), "sampling"));
  const uint64_t result_bytes = (tokens + kMostGraphTokens) * sizeof(GpuSampleResult);
  ASSIGN_OR_RETURN(results, CudaBuffer::Device(result_bytes, "results"));
  ASSIGN_OR_RETURN(results_pinned, CudaBuffer::Pinned(result_bytes, "results"));
  return {};
}

KvLayer CudaTransformer::Impl::Layer(uint32_t layer) const {
  const size_t per = HasScales(shape.dtype) ? 2 : 1;
  const auto rows = [&](size_t i) -> KvRows {
    return {.data = static_cast<std::byte*>(parts[i * per].data),
            .scales = per == 2 ? static_cast<float*>(parts[i * per + 1].data) : nullptr};
  };
  return {.dtype = shape.dtype, .keys = rows(2 * layer), .values = rows(2 * layer + 1)};
}

// ---- Products

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
  return m.format == GpuFormat::kE4M3 && has_fp8 && !fp8_refused.contains({tokens, m.rows, m.columns, kind});
}

Status CudaTransformer::Impl::MultiplyCublas(const GpuMatrix& m, const uint16_t* x, uint32_t tokens,
                                             void* out, GpuGemmOut kind) {
  if (IsFp8(m, tokens, kind)) {
    RETURN_IF_CUDA_ERROR(QuantizeRowsCuda(
        {.x = x, .rows = tokens, .width = m.columns, .out = codes, .scales = code_scales}, launch()));
  } else if (m.format != GpuFormat::kBF16) {
    RETURN_IF_CUDA_ERROR(DequantizeCuda(m, dequantized, launch()));
  }
  const Status status = cublas->Run(CublasOf(m, x, tokens, out, kind), stream.get());
  if (status.code() == StatusCode::kUnimplemented && IsFp8(m, tokens, kind)) {
    fp8_refused.insert({tokens, m.rows, m.columns, kind});
    return MultiplyCublas(m, x, tokens, out, kind);
  }
  RETURN_IF_ERROR(status);
  if (kind != GpuGemmOut::kGated) return {};
  RETURN_IF_CUDA_ERROR(SiluMulCuda(
      {.in = gate_up, .tokens = tokens, .width = m.rows / 2, .out = static_cast<uint16_t*>(out)}, launch()));
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
  std::erase_if(out, [&](const GpuMatrix* m) { return m->format != like.format || m->group != like.group; });
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
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return milliseconds / 1e3 / static_cast<double>(count);
}

Status CudaTransformer::Impl::MultiplyAs(const GemmPlan& plan, const GpuMatrix& m, const uint16_t* x,
                                         uint32_t tokens, void* out, GpuGemmOut kind, const NormPart& norm) {
  const GpuGemmArgs args{.x = x,
                         .tokens = tokens,
                         .weights = m,
                         .out = out,
                         .kind = kind,
                         .next_norm = norm.next_norm,
                         .next_x = norm.next_norm == nullptr ? nullptr : normed,
                         .next_squares = norm.next_norm == nullptr ? nullptr : squares,
                         .x_squares = norm.divides ? squares : nullptr,
                         .epsilon = config.norm_epsilon};
  switch (plan.kernel) {
    case GemmPlan::Kernel::kCublas:
      return MultiplyCublas(m, x, tokens, out, kind);
    case GemmPlan::Kernel::kStream:
      RETURN_IF_CUDA_ERROR(StreamGemmCuda(args, plan.shape, launch()));
      return {};
    case GemmPlan::Kernel::kTile:
      RETURN_IF_CUDA_ERROR(TileGemmCuda(args, {.partials = partials, .arrived = tile_arrived}, launch()));
      return {};
  }
  return {};
}

// Times what could make a product of this shape on the model's own matrices, into memory that holds nothing
// yet.
StatusOr<GemmPlan> CudaTransformer::Impl::PlanFor(Role role, const GpuMatrix& m, const uint16_t* x,
                                                  uint32_t tokens, GpuGemmOut kind) {
  using Kernel = GemmPlan::Kernel;
  const GemmPlan stream_plan{.kernel = Kernel::kStream,
                             .shape = DefaultStreamGemmShape(m.rows, m.columns, m.format, tokens)};
  if (is_invariant) return stream_plan;
  const bool can_cublas = role == Role::kHead ? m.format == GpuFormat::kBF16 : !FusesNorms(tokens);
  GemmPlan best = can_cublas ? GemmPlan{} : stream_plan;
  // Sizes that come again: decode steps and full chunks. Another takes cuBLASLt's first guess.
  const bool is_timed = tokens <= kMostStreamTokens || std::has_single_bit(tokens) ||
                        (tokens <= kMostGraphTokens && TokenBucket(tokens) == tokens);
  if (!is_timed) return best;
  // Half of attention's partial sums may be tile_gemm's; the other half stands for the residual stream.
  const uint64_t outputs = uint64_t{tokens} * m.rows;
  void* out = role == Role::kHead ? static_cast<void*>(logits) : static_cast<void*>(qkv);
  if (kind == GpuGemmOut::kAddF32) {
    if (outputs > kPartialFloats / 2) return best;
    out = partials + kPartialFloats / 2;
    RETURN_IF_CUDA_ERROR(cudaMemsetAsync(out, 0, outputs * sizeof(float), stream.get()));
  } else if (kind == GpuGemmOut::kGated) {
    out = gate;
  }
  const std::vector<const GpuMatrix*> all = MatricesOf(role, m);
  std::vector<GemmPlan> candidates;
  if (can_cublas) {
    RETURN_IF_ERROR(MultiplyCublas(m, x, tokens, out, kind));  // finds out whether there is one of FP8
    std::vector<CublasGemm> samples;
    for (const GpuMatrix* each : all) samples.push_back(CublasOf(*each, x, tokens, out, kind));
    RETURN_IF_ERROR(cublas->Tune(samples, stream.get()).status());
    candidates.push_back({});
  }
  if (tokens <= kMostStreamTokens || !can_cublas) {
    for (const StreamGemmShape& each : StreamGemmShapes()) {
      candidates.push_back({.kernel = Kernel::kStream, .shape = each});
    }
  }
  if (m.format != GpuFormat::kBF16 && m.rows >= kTileWarpRows && tokens >= kLeastTileTokens &&
      tokens <= kMostTileTokens && TileGemmPartialFloats(m.rows, m.columns, tokens) <= kPartialFloats / 2) {
    candidates.push_back({.kernel = Kernel::kTile, .shape = {}});
  }
  double best_seconds = -1;
  Status last_error;
  for (const GemmPlan& candidate : candidates) {
    const auto seconds =
        Time([&](size_t i) { return MultiplyAs(candidate, *all[i], x, tokens, out, kind); }, all.size());
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

Status CudaTransformer::Impl::Multiply(Role role, const GpuMatrix& m, const uint16_t* x, uint32_t tokens,
                                       void* out, GpuGemmOut kind, const NormPart& norm) {
  const uint32_t like = tokens <= kMostStreamTokens ? std::min(TokenBucket(tokens), max_tokens()) : tokens;
  const auto key = std::make_tuple(role, like, kind, m.format, m.group);
  auto plan = plans.find(key);
  if (plan == plans.end()) {
    ASSIGN_OR_RETURN(const GemmPlan made, PlanFor(role, m, x, like, kind));
    plan = plans.emplace(key, made).first;
  }
  return MultiplyAs(plan->second, m, x, tokens, out, kind, norm);
}

// ---- A step

GpuBatch CudaTransformer::Impl::BatchOf(const StepLayout& layout, uint32_t tokens) const {
  return {.tokens = tokens,
          .positions = staging.as<uint32_t>(layout.positions),
          .sequences = staging.as<uint32_t>(layout.sequences),
          .block_tables = tables.as<int32_t>(),
          .table_pitch = table_pitch,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .blocks = pool_blocks,
          .log2_block_tokens = static_cast<uint32_t>(std::countr_zero(shape.block_tokens))};
}

// Tokens that are decoded come first: padding of a graph behind them reads and writes a block of its own.
Status CudaTransformer::Impl::Describe(const Batch& batch, const Choice* choice, const StepLayout& layout,
                                       uint32_t token_count, uint32_t wanted_count) {
  RETURN_IF_CUDA_ERROR(cudaEventSynchronize(step_end));  // the step before has left the pinned memory
  auto* tokens = staging_pinned.as<int32_t>(layout.tokens);
  auto* positions = staging_pinned.as<uint32_t>(layout.positions);
  auto* sequences = staging_pinned.as<uint32_t>(layout.sequences);
  auto* wanted = staging_pinned.as<uint32_t>(layout.wanted);
  auto* runs = staging_pinned.as<GpuQueryRun>(layout.runs);
  auto* table = tables_pinned.as<int32_t>();
  const uint32_t pad = static_cast<uint32_t>(batch.sequences.size());
  CHECK(pad <= limits.max_sequences, pad, " sequences");
  std::vector<uint32_t> first(batch.sequences.size());  // token of each sequence
  uint32_t at = 0, run_count = 0;
  for (const bool decoded : {true, false}) {
    for (uint32_t s = 0; s < pad; ++s) {
      const BatchSequence& sequence = batch.sequences[s];
      const auto count = static_cast<uint32_t>(sequence.tokens.size());
      if (decoded != (is_invariant || count <= kMostDecodeTokens)) continue;
      first[s] = at;
      const uint32_t blocks = (sequence.first_position + count + shape.block_tokens - 1) / shape.block_tokens;
      CHECK(sequence.blocks.size() >= blocks && blocks <= table_pitch, sequence.blocks.size(), " KV blocks");
      // Most steps of a decode find the tables that the device has.
      int32_t* const row = table + uint64_t{s} * table_pitch;
      if (!std::equal(row, row + blocks, sequence.blocks.data())) {
        std::copy_n(sequence.blocks.data(), blocks, row);
        step.tables_changed = true;
      }
      for (uint32_t i = 0; i < count; ++i) {
        CHECK(sequence.tokens[i] >= 0 && static_cast<uint32_t>(sequence.tokens[i]) < config.vocab_size);
        tokens[at + i] = sequence.tokens[i];
        positions[at + i] = sequence.first_position + i;
        sequences[at + i] = s;
      }
      for (uint32_t i = 0; !decoded && i < count; i += kGpuQueryTile) {
        runs[run_count++] = {at + i, std::min(kGpuQueryTile, count - i)};
      }
      at += count;
    }
  }
  for (; at < token_count; ++at) {
    tokens[at] = 0;
    positions[at] = 0;
    sequences[at] = pad;
  }
  int32_t& block_of_padding = table[uint64_t{pad} * table_pitch];
  step.tables_changed = step.tables_changed || block_of_padding != static_cast<int32_t>(shape.blocks);
  block_of_padding = static_cast<int32_t>(shape.blocks);
  // Long tiles first: the last ones to run are then short.
  std::stable_sort(runs, runs + run_count, [&](const GpuQueryRun& a, const GpuQueryRun& b) {
    return positions[a.first] > positions[b.first];
  });
  uint32_t rows = 0;
  for (uint32_t s = 0; s < pad; ++s) {
    const BatchSequence& sequence = batch.sequences[s];
    const auto count = static_cast<uint32_t>(sequence.tokens.size());
    for (uint32_t i = count - sequence.logits; i < count; ++i) wanted[rows++] = first[s] + i;
  }
  for (; rows < wanted_count; ++rows) wanted[rows] = 0;
  if (choice != nullptr) {
    auto* choices = staging_pinned.as<GpuSampleRow>(layout.choices);
    std::copy(choice->rows.begin(), choice->rows.end(), choices);
    std::fill(choices + choice->rows.size(), choices + wanted_count, GpuSampleRow{});
    std::copy(choice->adjustments.begin(), choice->adjustments.end(),
              staging_pinned.as<GpuLogitAdjustment>(layout.adjustments));
  }
  return {};
}

Status CudaTransformer::Impl::UploadTables() {
  if (!step.tables_changed) return {};
  const size_t pitch = size_t{table_pitch} * sizeof(int32_t);
  RETURN_IF_CUDA_ERROR(cudaMemcpy2DAsync(tables.data(), pitch, tables_pinned.data(), pitch,
                                         size_t{step.table_columns} * sizeof(int32_t), step.sequences + 1,
                                         cudaMemcpyHostToDevice, stream.get()));
  return {};
}

Status CudaTransformer::Impl::Upload(uint64_t begin, uint64_t end) {
  if (begin == end) return {};
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(staging.data() + begin, staging_pinned.data() + begin, end - begin,
                                       cudaMemcpyHostToDevice, stream.get()));
  return {};
}

Status CudaTransformer::Impl::Download(uint32_t rows) {
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(results_pinned.data(), results.data(), rows * sizeof(GpuSampleResult),
                                       cudaMemcpyDeviceToHost, stream.get()));
  return {};
}

Status CudaTransformer::Impl::Attend(const GpuBatch& batch, const KvLayer& kv, const StepLayout& layout,
                                     uint32_t decode_tokens, uint32_t runs, uint32_t spans) {
  GpuAttentionArgs args{.batch = batch,
                        .q = qkv,
                        .q_pitch = q_width() + 2 * kv_width(),
                        .out = attended,
                        .kv = kv,
                        .heads = config.heads,
                        .scale = 1 / std::sqrt(static_cast<float>(config.head_dim)),
                        .most_spans = spans,
                        .partials = partials,
                        .arrived = arrived,
                        .runs = staging.as<GpuQueryRun>(layout.runs),
                        .run_count = runs};
  const uint64_t per_token = GpuAttentionPartialFloats(1, config.heads, config.head_dim, spans);
  const auto together =
      static_cast<uint32_t>(std::max<uint64_t>(1, std::min<uint64_t>(kPartialFloats / per_token, 65535)));
  for (uint32_t i = 0; i < decode_tokens; i += together) {
    args.first = i;
    args.count = std::min(together, decode_tokens - i);
    RETURN_IF_CUDA_ERROR(DecodeAttentionCuda(args, launch()));
  }
  if (runs > 0) RETURN_IF_CUDA_ERROR(PrefillAttentionCuda(args, launch()));
  return {};
}

Status CudaTransformer::Impl::QueueLayer(uint32_t index, const GpuBatch& batch, const StepLayout& layout,
                                         uint32_t decode_tokens, uint32_t runs, uint32_t spans) {
  const CudaLayer& layer = weights.layers[index];
  const KvLayer kv = Layer(index);
  const uint32_t tokens = batch.tokens;
  const bool fuses = FusesNorms(tokens);
  const float* const next_norm =
      fuses && index + 1 < config.layers ? weights.layers[index + 1].attention_norm : nullptr;
  const auto norm = [&](const float* weight) {
    return RmsNormCuda({.x = hidden,
                        .weight = weight,
                        .count = tokens,
                        .width = config.hidden_size,
                        .epsilon = config.norm_epsilon,
                        .out = normed},
                       launch());
  };
  const bool is_normed = fuses && index > 0;  // by the layer before
  if (!is_normed) RETURN_IF_CUDA_ERROR(norm(layer.attention_norm));
  RETURN_IF_ERROR(
      Multiply(Role::kQkv, layer.qkv, normed, tokens, qkv, GpuGemmOut::kBF16, {.divides = is_normed}));
  RETURN_IF_CUDA_ERROR(RopeKvCuda({.batch = batch,
                                   .qkv = qkv,
                                   .cos = cos,
                                   .sin = sin,
                                   .heads = config.heads,
                                   .neighbours = config.rope_pairing == RopePairing::kNeighbours,
                                   .kv = kv},
                                  launch()));
  RETURN_IF_ERROR(Attend(batch, kv, layout, decode_tokens, runs, spans));
  RETURN_IF_ERROR(Multiply(Role::kOutput, layer.output, attended, tokens, hidden, GpuGemmOut::kAddF32,
                           {.next_norm = fuses ? layer.ffn_norm : nullptr}));
  if (!fuses) RETURN_IF_CUDA_ERROR(norm(layer.ffn_norm));
  RETURN_IF_ERROR(
      Multiply(Role::kGateUp, layer.gate_up, normed, tokens, gate, GpuGemmOut::kGated, {.divides = fuses}));
  return Multiply(Role::kDown, layer.down, gate, tokens, hidden, GpuGemmOut::kAddF32,
                  {.next_norm = next_norm});
}

Status CudaTransformer::Impl::QueueHead(const StepLayout& layout, uint32_t wanted, bool has_choice,
                                        Sampling samples) {
  logits_on_host = step.wants_logits && wanted > logit_rows();
  if (logits_on_host) host_logits.resize(uint64_t{wanted} * config.vocab_size);
  for (uint32_t begin = 0; begin < wanted; begin += logit_rows()) {
    const uint32_t count = std::min(logit_rows(), wanted - begin);
    RETURN_IF_CUDA_ERROR(RmsNormCuda({.x = hidden,
                                      .weight = weights.final_norm,
                                      .rows = staging.as<uint32_t>(layout.wanted) + begin,
                                      .count = count,
                                      .width = config.hidden_size,
                                      .epsilon = config.norm_epsilon,
                                      .out = last_normed},
                                     launch()));
    RETURN_IF_ERROR(Multiply(Role::kHead, weights.head, last_normed, count, logits, GpuGemmOut::kF32));
    if (has_choice) {
      RETURN_IF_CUDA_ERROR(SampleCuda({.logits = logits,
                                       .rows = count,
                                       .vocab = config.vocab_size,
                                       .pitch = config.vocab_size,
                                       .samples = samples.draws,
                                       .tops = samples.tops,
                                       .params = staging.as<GpuSampleRow>(layout.choices) + begin,
                                       .adjustments = staging.as<GpuLogitAdjustment>(layout.adjustments),
                                       .results = results.as<GpuSampleResult>() + begin,
                                       .scratch = sample_scratch.data()},
                                      launch()));
    }
    if (logits_on_host) {
      RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(host_logits.data() + uint64_t{begin} * config.vocab_size, logits,
                                           uint64_t{count} * config.vocab_size * sizeof(float),
                                           cudaMemcpyDeviceToHost, stream.get()));
    }
  }
  return {};
}

Status CudaTransformer::Impl::Queue(const StepLayout& layout, uint32_t tokens, uint32_t decode_tokens,
                                    uint32_t runs, uint32_t wanted, uint32_t spans, bool has_choice,
                                    Sampling samples) {
  RETURN_IF_CUDA_ERROR(EmbedCuda({.tokens = staging.as<int32_t>(layout.tokens),
                                  .count = tokens,
                                  .table = weights.embedding,
                                  .vocab = config.vocab_size,
                                  .width = config.hidden_size,
                                  .out = hidden},
                                 {.stream = stream.get(), .follows = false}));
  const GpuBatch batch = BatchOf(layout, tokens);
  for (uint32_t i = 0; i < config.layers; ++i) {
    RETURN_IF_ERROR(QueueLayer(i, batch, layout, decode_tokens, runs, spans));
  }
  return QueueHead(layout, wanted, has_choice, samples);
}

// A graph of the step's size, captured when it is first needed, with what goes to the device before the step
// and back behind it. Whatever times or allocates runs before, once.
Status CudaTransformer::Impl::QueueAsGraph(const StepLayout& layout, uint32_t tokens, uint32_t spans,
                                           Sampling samples) {
  const auto queue = [&]() -> Status {
    RETURN_IF_ERROR(Upload(0, layout.adjustments));
    RETURN_IF_ERROR(Queue(layout, tokens, tokens, 0, tokens, spans, /*has_choice=*/true, samples));
    return Download(tokens);
  };
  const auto key = std::make_tuple(tokens, spans, (samples.draws ? 1 : 0) + (samples.tops ? 2 : 0));
  if (!graphs.contains(key) && graphs.size() >= kMostGraphs) ForgetGraphs();
  Graph& graph = graphs[key];
  if (graph.exec == nullptr) {
    RETURN_IF_ERROR(queue());
    RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream.get()));
    // The step is done. What follows is for the next one like it; where memory is too short for that, it is
    // for none.
    RETURN_IF_CUDA_ERROR(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
    const Status queued = queue();
    cudaGraph_t captured = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream.get(), &captured);
    const bool made = queued.ok() && ended == cudaSuccess &&
                      cudaGraphInstantiate(&graph.exec, captured, 0) == cudaSuccess &&
                      cudaGraphUpload(graph.exec, stream.get()) == cudaSuccess;
    if (captured != nullptr) cudaGraphDestroy(captured);
    if (!made) {
      cudaGetLastError();
      ForgetGraphs();
      RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream.get()));
    }
    return {};
  }
  RETURN_IF_CUDA_ERROR(cudaGraphLaunch(graph.exec, stream.get()));
  return {};
}

// ---- The class

Status CheckCudaModel(const ModelConfig& config) {
  if (config.head_dim != 32 && config.head_dim != 64 && config.head_dim != 128) {
    return Unsupported(Concat("heads of ", config.head_dim, " elements; 32, 64 and 128 are"));
  }
  if (config.heads / config.kv_heads > 16) {
    return Unsupported(
        Concat(config.heads / config.kv_heads, " query heads to a key-value head; up to 16 are"));
  }
  for (const auto& [name, width] :
       {std::pair{"hidden size", config.hidden_size}, std::pair{"feed-forward size", config.ffn_size},
        std::pair{"query width", config.heads * config.head_dim}}) {
    if (width % 64 != 0) return Unsupported(Concat("a ", name, " of ", width, "; multiples of 64 are"));
  }
  if (config.vocab_size % 16 != 0 || config.vocab_size > kGpuMostSampleVocab) {
    return Unsupported(Concat("a vocabulary of ", config.vocab_size, "; multiples of 16 up to ",
                              kGpuMostSampleVocab, " are"));
  }
  const uint32_t spans = std::bit_ceil((config.context_length + kGpuAttentionSpan - 1) / kGpuAttentionSpan);
  if (GpuAttentionPartialFloats(1, config.heads, config.head_dim, spans) > kPartialFloats) {
    return Unsupported(Concat("a context of ", config.context_length, " tokens"));
  }
  return {};
}

StatusOr<std::unique_ptr<CudaTransformer>> CudaTransformer::Create(const ModelConfig& config,
                                                                   const CudaWeights& weights,
                                                                   const KvShape& shape,
                                                                   const DeviceLimits& limits,
                                                                   bool is_invariant) {
  RETURN_IF_ERROR(CheckCudaModel(config));
  if (shape.dtype == KvDType::kF32) return Unsupported("f32 keys and values; bf16, f16 and int8 are");
  if (shape.block_tokens < 16 || !std::has_single_bit(shape.block_tokens)) {
    return Unsupported(Concat("KV blocks of ", shape.block_tokens, "; powers of two from 16 are"));
  }
  auto impl = std::make_unique<Impl>(config, weights, shape, limits, is_invariant);
  int device = 0, major = 0, minor = 0;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  impl->can_follow = major >= 9;
  impl->has_fp8 = major * 10 + minor >= 89;
  int most_shared = 0;
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  constexpr int kInt8PrefillShared = 116 * 1024;  // of prefill attention with heads of 128
  if (shape.dtype == KvDType::kInt8 && config.head_dim == 128 && most_shared < kInt8PrefillShared) {
    return Unsupported(Concat("int8 keys and values with heads of 128 on a device whose blocks have ",
                              most_shared, " bytes of shared memory"));
  }
  ASSIGN_OR_RETURN(impl->stream, CudaStream::Create());
  ASSIGN_OR_RETURN(impl->cublas, CublasLt::Create());
  RETURN_IF_CUDA_ERROR(cudaEventCreate(&impl->step_begin));
  RETURN_IF_CUDA_ERROR(cudaEventCreate(&impl->step_end));
  RETURN_IF_ERROR(impl->Allocate());
  RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize());
  return std::unique_ptr<CudaTransformer>(new CudaTransformer(std::move(impl)));
}

CudaTransformer::CudaTransformer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaTransformer::~CudaTransformer() = default;

Status CudaTransformer::Forward(const Batch& batch, const Choice* choice) {
  Impl& m = *impl_;
  Impl::Step& step = m.step;
  step = {};
  step.wants_logits = choice == nullptr || choice->wants_logits;
  step.sequences = static_cast<uint32_t>(batch.sequences.size());
  uint32_t furthest = 1;
  for (const BatchSequence& sequence : batch.sequences) {
    const auto count = static_cast<uint32_t>(sequence.tokens.size());
    const uint32_t end = sequence.first_position + count;
    CHECK(sequence.logits <= count && end <= m.limits.context_length, end, " positions");
    step.tokens += count;
    step.wanted += sequence.logits;
    step.table_columns =
        std::max(step.table_columns, (end + m.shape.block_tokens - 1) / m.shape.block_tokens);
    if (m.is_invariant || count <= kMostDecodeTokens) {
      step.decode_tokens += count;
      furthest = std::max(furthest, end);
    } else {
      step.runs += (count + kGpuQueryTile - 1) / kGpuQueryTile;
    }
  }
  CHECK(step.tokens <= m.max_tokens(), step.tokens, " tokens of ", m.max_tokens());
  m.result_rows = 0;
  if (step.tokens == 0) return {};
  step.most_spans = std::bit_ceil((furthest + kGpuAttentionSpan - 1) / kGpuAttentionSpan);
  step.table_columns = std::max(step.table_columns, 1u);
  size_t adjustments = 0;
  if (choice != nullptr) {
    CHECK(choice->rows.size() == step.wanted && choice->adjustments.size() <= kMostAdjustments);
    adjustments = choice->adjustments.size();
    for (const GpuSampleRow& row : choice->rows) {
      step.samples.draws = step.samples.draws || row.temperature > 0;
      step.samples.tops = step.samples.tops || row.top > 0;
    }
  }
  const bool as_graph = step.decode_tokens == step.tokens && 2 * step.wanted >= step.tokens &&
                        choice != nullptr && step.tokens <= std::min(kMostGraphTokens, m.logit_rows());
  // A graph has as many rows of logits as it has tokens.
  const uint32_t tokens = as_graph ? std::min(TokenBucket(step.tokens), m.logit_rows()) : step.tokens;
  const uint32_t wanted = as_graph ? tokens : step.wanted;
  const StepLayout layout(tokens, wanted, step.runs);
  RETURN_IF_ERROR(m.Describe(batch, choice, layout, tokens, wanted));
  RETURN_IF_ERROR(m.UploadTables());
  RETURN_IF_ERROR(m.Upload(as_graph ? layout.adjustments : 0,
                           layout.adjustments + adjustments * sizeof(GpuLogitAdjustment)));
  RETURN_IF_CUDA_ERROR(cudaEventRecord(m.step_begin, m.stream.get()));
  if (as_graph) {
    RETURN_IF_ERROR(m.QueueAsGraph(layout, tokens, step.most_spans, step.samples));
  } else {
    RETURN_IF_ERROR(m.Queue(layout, step.tokens, step.decode_tokens, step.runs, step.wanted, step.most_spans,
                            choice != nullptr, step.samples));
    if (choice != nullptr && step.wanted > 0) RETURN_IF_ERROR(m.Download(step.wanted));
  }
  RETURN_IF_CUDA_ERROR(cudaEventRecord(m.step_end, m.stream.get()));
  if (choice != nullptr) m.result_rows = step.wanted;
  return {};
}

StatusOr<std::span<const GpuSampleResult>> CudaTransformer::Results() {
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(impl_->stream.get()));
  return std::span<const GpuSampleResult>(impl_->results_pinned.as<GpuSampleResult>(), impl_->result_rows);
}

StatusOr<std::vector<float>> CudaTransformer::Logits(size_t rows) {
  Impl& m = *impl_;
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(m.stream.get()));
  if (m.logits_on_host) return std::move(m.host_logits);
  CHECK(rows <= m.logit_rows(), rows, " rows");
  std::vector<float> out(rows * m.config.vocab_size);
  RETURN_IF_CUDA_ERROR(cudaMemcpy(out.data(), m.logits, out.size() * sizeof(float), cudaMemcpyDeviceToHost));
  return out;
}

// Between block `block` of the pool and the slot.
Status CudaTransformer::Impl::MoveBlock(const Slot& slot, uint32_t block, bool to_pool) {
  RETURN_IF_CUDA_ERROR(KvCopyCuda({.parts = pool_parts.as<GpuKvPart>(),
                                   .part_count = static_cast<uint32_t>(parts.size()),
                                   .kv_heads = shape.kv_heads,
                                   .blocks = pool_blocks,
                                   .from = block,
                                   .to = block,
                                   .rows = shape.block_tokens,
                                   .staging = slot.block.data(),
                                   .to_pool = to_pool},
                                  {.stream = stream.get(), .follows = false}));
  return {};
}

Status CudaTransformer::CopyRows(BlockId from, BlockId to, uint32_t rows) {
  Impl& m = *impl_;
  CHECK(from != to && from >= 0 && static_cast<uint32_t>(from) < m.shape.blocks && to >= 0 &&
        static_cast<uint32_t>(to) < m.shape.blocks && rows <= m.shape.block_tokens);
  RETURN_IF_CUDA_ERROR(KvCopyCuda({.parts = m.pool_parts.as<GpuKvPart>(),
                                   .part_count = static_cast<uint32_t>(m.parts.size()),
                                   .kv_heads = m.shape.kv_heads,
                                   .blocks = m.pool_blocks,
                                   .from = static_cast<uint32_t>(from),
                                   .to = static_cast<uint32_t>(to),
                                   .rows = rows},
                                  m.launch()));
  return {};
}

Status CudaTransformer::CopyToHost(BlockId from, uint32_t host_block) {
  Impl& m = *impl_;
  CHECK(host_block < m.shape.host_blocks && from >= 0 && static_cast<uint32_t>(from) < m.shape.blocks);
  Impl::Slot& slot = m.slots[m.next_slot++ % m.slots.size()];
  RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(m.stream.get(), slot.copied));
  RETURN_IF_ERROR(m.MoveBlock(slot, static_cast<uint32_t>(from), /*to_pool=*/false));
  RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.gathered, m.stream.get()));
  RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(m.copies.get(), slot.gathered));
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(m.host_pool.data() + host_block * m.shape.BlockBytes(),
                                       slot.block.data(), m.shape.BlockBytes(), cudaMemcpyDeviceToHost,
                                       m.copies.get()));
  RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.copied, m.copies.get()));
  return {};
}

Status CudaTransformer::CopyFromHost(uint32_t host_block, BlockId to) {
  Impl& m = *impl_;
  CHECK(host_block < m.shape.host_blocks && to >= 0 && static_cast<uint32_t>(to) < m.shape.blocks);
  Impl::Slot& slot = m.slots[m.next_slot++ % m.slots.size()];
  RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(m.copies.get(), slot.gathered));
  RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(slot.block.data(),
                                       m.host_pool.data() + host_block * m.shape.BlockBytes(),
                                       m.shape.BlockBytes(), cudaMemcpyHostToDevice, m.copies.get()));
  RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.copied, m.copies.get()));
  RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(m.stream.get(), slot.copied));
  RETURN_IF_ERROR(m.MoveBlock(slot, static_cast<uint32_t>(to), /*to_pool=*/true));
  RETURN_IF_CUDA_ERROR(cudaEventRecord(slot.gathered, m.stream.get()));
  return {};
}

Status CudaTransformer::WaitForCopies() {
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(impl_->stream.get()));
  if (impl_->copies.get() != nullptr) RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(impl_->copies.get()));
  return {};
}

cudaStream_t CudaTransformer::stream() const { return impl_->stream.get(); }

StatusOr<double> CudaTransformer::LastStepSeconds() {
  RETURN_IF_CUDA_ERROR(cudaEventSynchronize(impl_->step_end));
  float milliseconds = 0;
  RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(&milliseconds, impl_->step_begin, impl_->step_end));
  return milliseconds / 1e3;
}

}  // namespace terrace
