// Inside CudaTransformer: what it owns, and how a step is made of it. Of cuda_transformer.cc (the class, what
// goes in and out), cuda_memory_plan.cc (what is allocated), cuda_products.cc (which kernel multiplies) and
// cuda_step.cc (a step, kernel by kernel).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/copy/kv_copy_gpu.h"
#include "kernels/gemm/ordered_gemm_cuda.h"
#include "kernels/gemm/stream_gemm_cuda.h"
#include "kernels/gemm/wide_gemm_gpu.h"
#include "kernels/gpu_batch.h"
#include "kernels/moe/route_experts_gpu.h"
#include "kernels/quant/row_codes_gpu.h"
#include "kernels/rope/rope_frequencies.h"
#include "worker/cuda/array_layout.h"
#include "worker/cuda/cublas_gemm.h"
#include "worker/cuda/cuda_transformer.h"
#include "worker/cuda/expert_routes.h"
#include "worker/cuda/rank_step.h"
#include "worker/cuda/step_memory.h"
#include "worker/cuda/token_bucket.h"
#include "worker/engine/device_rules.h"

namespace terrace {

// Sequences of at most so many tokens go through decode attention, token by token: an answer's next token and
// the drafted ones behind it, eight of them unless more are asked for. In the invariant mode bits do not
// depend on it.
inline constexpr size_t kMostDecodeTokens = 16;
// More tokens than this never go through stream_gemm; in the invariant mode they go through ordered_gemm,
// which makes the same bits.
inline constexpr uint32_t kMostStreamTokens = 64;
inline constexpr size_t kMostGraphs = 256;  // kept at a time: some MB each
// Matrices timed to choose an algorithm: together beyond the device's cache.
inline constexpr uint64_t kTuningBytes = uint64_t{192} << 20;

// What passes between a product of the layers and those before and behind it, beside x and out.
struct ProductEnds {
  // Of RMSNorm, where no kernel does it (gpu_gemm.h)
  bool divides = false;              // its x is not yet divided
  const float* next_norm = nullptr;  // it leaves the x of the next product
  // Of products that take activations as codes (RowCodes), in `codes` and `code_scales`
  bool has_codes = false;     // they hold its x; what it is given as x is not read
  bool leaves_codes = false;  // of cuBLASLt's kGated: they get what is gated as FP8, `out` nothing
};

struct CudaTransformer::Impl {
  // What of choosing tokens some row of a step needs, beside the largest logit.
  struct Sampling {
    bool draws = false, tops = false;
  };

  enum class Role : uint8_t { kQkv, kOutput, kGateUp, kDown, kHead };

  // How a product of one shape is made.
  struct GemmPlan {
    enum class Kernel : uint8_t { kCublas, kStream, kOrdered, kTile, kWide, kSparse, kInt8 };
    Kernel kernel = Kernel::kCublas;
    StreamGemmShape shape = {};  // of kStream
    WideGemmShape wide = {};     // of kWide
  };

  const ModelConfig config;
  const CudaWeights& weights;
  const KvShape shape;
  const DeviceLimits limits;
  const bool is_invariant;
  std::unique_ptr<RankStep> group;  // null where the whole model is here
  bool can_follow = false;          // programmatic dependent launch: sm_90, not behind what NCCL queues
  bool has_fp8 = false;             // products of FP8: sm_89
  bool has_run_attention = false;   // it has such heads, and blocks the shared memory it takes
  // Tokens, rows, columns, output: whether cuBLASLt has this product of FP8. Absent: it was not asked.
  std::map<std::tuple<uint32_t, uint32_t, uint32_t, GpuGemmOut>, bool> fp8_products;
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

  // By StepMemory, and pinned what the host writes and reads of it.
  CudaBuffer scratch, rope, staging, staging_pinned, tables, tables_pinned, sample_scratch, results,
      results_pinned;
  float* squares = nullptr;  // [kMostNormTokens, hidden / kTileRows]
  float *hidden = nullptr, *partials = nullptr;
  float* logits = nullptr;    // [rows, logit_pitch()]; without has_logits() [rows, rows of the head]
  float* sublayer = nullptr;  // [tokens, hidden]: what a sublayer puts out, where that is normed
  struct Angles {
    float *cos = nullptr, *sin = nullptr;  // [context, head_dim / 2]
  } angles, window_angles;                 // of layers with a window, where these have their own
  float* gathered = nullptr;  // of a group: the logits of all ranks, [ranks, rows, vocabulary / ranks]
  uint16_t *normed = nullptr, *qkv = nullptr, *attended = nullptr, *gate_up = nullptr, *gate = nullptr,
           *last_normed = nullptr, *dequantized = nullptr;
  ExpertRoutes experts;          // of a step's tokens
  float* expert_rows = nullptr;  // [tokens * experts_per_token, hidden]: what they put out
  uint8_t* codes = nullptr;      // activations in FP8 or int8, [tokens, widest]
  float* code_scales = nullptr;  // [tokens]
  uint32_t *arrived = nullptr, *tile_arrived = nullptr;

  // Candidates are timed for a graph, which is replayed, and where a shape comes in a second step: what comes
  // once, such as the prompt that a first token waits for, takes a plan that needs no timing.
  struct KnownShape {
    GemmPlan plan;
    bool is_timed = false;
    uint64_t first_step = 0;
  };
  // By role, tokens, output, and the weights' format, group and has_row_scales: layers may differ in these.
  std::map<std::tuple<Role, uint32_t, GpuGemmOut, GpuFormat, uint32_t, bool>, KnownShape> plans;
  struct Graph {
    cudaGraphExec_t exec = nullptr;
    uint64_t last_step = 0;  // that used it, of `steps`
  };
  // Tokens, spans, ropes_in_attention, how tokens are chosen.
  std::map<std::tuple<uint32_t, uint32_t, bool, int>, Graph> graphs;
  cudaEvent_t step_begin = nullptr, step_end = nullptr;

  // Of the step that is being described.
  struct Step {
    uint32_t tokens = 0, decode_tokens = 0, wanted = 0, runs = 0, most_spans = 1, sequences = 0;
    uint32_t table_columns = 0;
    bool tables_changed = false;
    // Every sequence whose tokens are decoded has one: attention makes their keys and values too. With
    // several one would read what another's block is about to write.
    bool ropes_in_attention = true;
    Sampling samples;
    bool wants_logits = false;
    bool is_first_of_its_kind = false;  // kernels were timed, or a graph captured
    bool as_graph = false;
    bool may_time = true;  // kernels: a wait for the device, and so not while that waits for other ranks
  } step;
  uint64_t steps = 0;  // begun
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
  // The one that was not used for the longest time. No step is under way.
  void ForgetOldestGraph() {
    const auto oldest =
        std::ranges::min_element(graphs, {}, [](const auto& each) { return each.second.last_step; });
    if (oldest->second.exec != nullptr) cudaGraphExecDestroy(oldest->second.exec);
    graphs.erase(oldest);
  }
  uint32_t q_width() const { return config.heads * config.head_dim; }
  uint32_t kv_width() const { return config.kv_heads * config.head_dim; }
  uint32_t max_tokens() const { return StepTokens(limits); }
  uint32_t logit_rows() const { return LogitRows(limits); }
  CudaLaunch launch() const { return {.stream = stream.get(), .follows = can_follow}; }

  Status Forward(const Batch& batch, const Choice* choice);
  // Of a group, before a step: times what it would time.
  Status PlanProducts(uint32_t tokens, uint32_t wanted);
  bool has_logits() const { return group == nullptr || group->leads(); }
  // From one row's logits to the next one's. Behind the vocabulary's are those of the head's rows of zeros,
  // which nobody reads; of a group there are none, as each rank's part is whole tiles.
  uint32_t logit_pitch() const { return RowsOfWholeTiles(config.vocab_size); }
  // How a product gets into the residual stream: of a group see RankStep::leads.
  // Where what a sublayer puts out is normed, it does not.
  GpuGemmOut ResidualOut() const {
    return has_logits() && !config.has_post_norms ? GpuGemmOut::kAddF32 : GpuGemmOut::kF32;
  }
  float* ResidualMemory() const { return config.has_post_norms ? sublayer : hidden; }
  // Behind a product of ResidualOut: `hidden` has the sublayer of all ranks, `post_norm` is null without one.
  Status AddUp(uint32_t tokens, const float* post_norm);
  Status GatherLogits(uint32_t rows);
  Status CopyLogits(uint32_t rows, float* to);  // queues it; `to` is [rows, vocabulary], of the host

  Status AllocatePool();
  Status AllocateSteps();
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
  // hidden += what the experts of a layer put out, from the norm before them on.
  Status QueueExperts(const CudaLayer& layer, uint32_t tokens);
  // Whether attention makes the keys and values of what is decoded: decode_attention does so only where
  // nothing but RoPE lies between, nothing but the position limits what a token sees, and for heads of 128
  // at most.
  bool RopesInAttention(uint32_t layer) const {
    return step.ropes_in_attention && GpuDecodeHasRope(config.head_dim) && !config.has_attention_bias &&
           !config.has_head_norms && config.Window(layer) == 0 && config.attention_softcap == 0;
  }
  const Angles& AnglesOf(uint32_t layer) const {
    return config.HasWindowRope(layer) ? window_angles : angles;
  }
  Status MakeAngles(const RopeFrequencies& frequencies, float* memory, Angles& out);
  Status Rope(uint32_t layer, const GpuBatch& batch, uint32_t first);  // tokens from `first` on
  Status Attend(uint32_t layer, const GpuBatch& batch, const StepLayout& step_layout, uint32_t decode_tokens,
                uint32_t runs, uint32_t spans);
  Status QueueHead(const StepLayout& layout, uint32_t wanted, bool has_choice, Sampling samples);
  // Whether a sequence's tokens of a step go through decode attention, else through one for runs of tokens.
  bool IsDecoded(size_t count) const {
    return count <= kMostDecodeTokens || (is_invariant && !has_run_attention);
  }
  // Without norms of their own the residual stream's products are stream_gemm's. Of a group what a product
  // makes is not yet the stream, so there are norms.
  bool FusesNorms(uint32_t tokens) const {
    return !is_invariant && group == nullptr && tokens <= kMostNormTokens && !config.has_post_norms &&
           config.experts == 0;
  }
  // How the product is made. May time candidates, which overwrites codes, partials and what a product of the
  // role writes: so before what makes its x, or behind what reads the same.
  StatusOr<GemmPlan> PlanOf(Role role, const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens,
                            GpuGemmOut kind);
  // As what it reads its x from `codes`, so that whoever makes it may write that alone: FP8 only where
  // cuBLASLt is known to have the product, as there is no x in bf16 to fall back to.
  RowCodes CodesRead(const GemmPlan& plan, const GpuMatrix& matrix, uint32_t tokens, GpuGemmOut kind) const;
  Status Multiply(Role role, const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens, void* out,
                  GpuGemmOut kind, const ProductEnds& ends = {});
  Status MultiplyCublas(const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens, void* out,
                        GpuGemmOut kind, const ProductEnds& ends);
  CublasGemm CublasOf(const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens, void* out,
                      GpuGemmOut kind) const;
  bool IsFp8(const GpuMatrix& matrix, uint32_t tokens, GpuGemmOut kind) const;
  // Of a router, in every mode by kernels that agree to the bit: ranks of a group, each of which routes all
  // tokens, have to agree, and what is timed they may each find otherwise.
  static GemmPlan RouterPlan(const GpuMatrix& matrix, uint32_t tokens);
  GemmPlan UntimedPlan(Role role, const GpuMatrix& matrix, uint32_t tokens) const;
  bool CanCublas(Role role, const GpuMatrix& matrix, uint32_t tokens) const {
    return role == Role::kHead ? matrix.format == GpuFormat::kBF16 : !FusesNorms(tokens);
  }
  StatusOr<GemmPlan> TimedPlan(Role role, const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens,
                               GpuGemmOut kind);
  std::vector<const GpuMatrix*> MatricesOf(Role role, const GpuMatrix& like) const;
  Status MultiplyAs(const GemmPlan& plan, const GpuMatrix& matrix, const uint16_t* x, uint32_t tokens,
                    void* out, GpuGemmOut kind, const ProductEnds& ends);
  StatusOr<double> Time(const std::function<Status(size_t)>& queue, size_t count) const;
  Status MoveBlock(const Slot& slot, uint32_t block, bool to_pool);
  Status QueueAsGraph(const StepLayout& layout, uint32_t tokens, uint32_t spans, Sampling samples);
};

}  // namespace terrace
