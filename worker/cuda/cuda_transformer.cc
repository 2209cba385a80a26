#include "worker/cuda/cuda_transformer.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "kernels/attention/prefill_attention_cuda.h"
#include "kernels/attention/run_attention_cuda.h"
#include "kernels/copy/kv_copy_cuda.h"
#include "worker/cuda/cuda_transformer_impl.h"
#include "worker/engine/device_rules.h"

namespace terrace {

namespace {

Status Unsupported(const std::string& what) {
  return WithReason(Unimplemented("CUDA: ", what), "unsupported_device");
}

}  // namespace

StatusOr<std::unique_ptr<CudaTransformer>> CudaTransformer::Create(
    const ModelConfig& config, const CudaWeights& weights, const KvShape& shape, const DeviceLimits& limits,
    bool is_invariant, const DeviceTuning& tuning, NcclCommunicator* nccl) {
  RETURN_IF_ERROR(Annotate(CheckDeviceModel(config), "CUDA"));
  if (shape.dtype == KvDType::kF32) return Unsupported("f32 keys and values; bf16, f16, int8 and fp8 are");
  if (shape.block_tokens < kLeastBlockTokens || !std::has_single_bit(shape.block_tokens)) {
    return Unsupported(
        Concat("KV blocks of ", shape.block_tokens, "; powers of two from ", kLeastBlockTokens, " are"));
  }
  auto impl = std::make_unique<Impl>(config, weights, shape, limits, is_invariant);
  int device = 0, major = 0, minor = 0;
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  CHECK(weights.head.rows * (nccl == nullptr ? 1 : nccl->ranks()) == RowsOfWholeTiles(config.vocab_size),
        weights.head.rows, " logits of ", config.vocab_size);
  if (nccl != nullptr) {
    impl->group = std::make_unique<RankStep>(*nccl, config.hidden_size, is_invariant);
  }
  impl->can_follow = major >= 9 && nccl == nullptr;
  impl->has_fp8 = major * 10 + minor >= 89;
  int most_shared = 0;
  RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const GpuAttentionArgs attention{.batch = {.kv_heads = config.kv_heads, .head_dim = config.head_dim},
                                   .kv = {.dtype = shape.dtype, .keys = {}, .values = {}},
                                   .heads = config.heads};
  const size_t shared = PrefillAttentionSharedBytes(attention);
  if (shared > static_cast<size_t>(most_shared)) {
    return Unsupported(Concat(KvDTypeName(shape.dtype), " keys and values with heads of ", config.head_dim,
                              " on a device whose blocks have ", most_shared, " bytes of shared memory; ",
                              shared, " are needed"));
  }
  impl->has_run_attention = config.head_dim <= kRunAttentionMostHeadDim &&
                            RunAttentionSharedBytes(attention) <= static_cast<size_t>(most_shared);
  ASSIGN_OR_RETURN(impl->stream, CudaStream::Create());
  ASSIGN_OR_RETURN(impl->cublas, CublasLt::Create(tuning));
  RETURN_IF_CUDA_ERROR(cudaEventCreate(&impl->step_begin));
  RETURN_IF_CUDA_ERROR(cudaEventCreate(&impl->step_end));
  RETURN_IF_ERROR(impl->AllocatePool());
  RETURN_IF_ERROR(impl->AllocateSteps());
  RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize());
  return std::unique_ptr<CudaTransformer>(new CudaTransformer(std::move(impl)));
}

CudaTransformer::CudaTransformer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaTransformer::~CudaTransformer() = default;

bool CudaTransformer::has_logits() const { return impl_->has_logits(); }

// What was queued before an error may wait for another rank, and others for this one.
Status CudaTransformer::Forward(const Batch& batch, const Choice* choice) {
  const Status status = impl_->Forward(batch, choice);
  if (!status.ok() && impl_->group != nullptr) impl_->group->Abort(status);
  return status;
}

Status CudaTransformer::Impl::Forward(const Batch& batch, const Choice* choice) {
  step = {};
  ++steps;
  CHECK(choice == nullptr || has_logits(), "a choice without logits");
  step.wants_logits = has_logits() && (choice == nullptr || choice->wants_logits);
  step.sequences = static_cast<uint32_t>(batch.sequences.size());
  uint32_t furthest = 1;
  for (const BatchSequence& sequence : batch.sequences) {
    const auto count = static_cast<uint32_t>(sequence.tokens.size());
    const uint32_t end = sequence.first_position + count;
    CHECK(sequence.logits <= count && end <= limits.context_length, end, " positions");
    step.tokens += count;
    step.wanted += sequence.logits;
    step.table_columns = std::max(step.table_columns, (end + shape.block_tokens - 1) / shape.block_tokens);
    if (IsDecoded(count)) {
      step.decode_tokens += count;
      step.ropes_in_attention = step.ropes_in_attention && count <= 1;
      furthest = std::max(furthest, end);
    } else {
      step.runs += (count + kGpuQueryTile - 1) / kGpuQueryTile;
    }
  }
  CHECK(step.tokens <= max_tokens(), step.tokens, " tokens of ", max_tokens());
  result_rows = 0;
  if (step.tokens == 0) return {};
  step.most_spans = std::bit_ceil((furthest + kGpuAttentionSpan - 1) / kGpuAttentionSpan);
  step.table_columns = std::max(step.table_columns, 1u);
  size_t adjustments = 0;
  if (choice != nullptr) {
    CHECK(choice->rows.size() == step.wanted && choice->adjustments.size() <= kMostLogitAdjustments);
    adjustments = choice->adjustments.size();
    for (const GpuSampleRow& row : choice->rows) {
      step.samples.draws = step.samples.draws || row.temperature > 0;
      step.samples.tops = step.samples.tops || row.top > 0;
    }
  }
  const bool as_graph = group == nullptr && step.decode_tokens == step.tokens &&
                        2 * step.wanted >= step.tokens && choice != nullptr &&
                        step.tokens <= std::min(kMostGraphTokens, logit_rows());
  step.as_graph = as_graph;
  // A graph has as many rows of logits as it has tokens.
  const uint32_t tokens = as_graph ? std::min(TokenBucket(step.tokens), logit_rows()) : step.tokens;
  const uint32_t wanted = as_graph ? tokens : step.wanted;
  const StepLayout layout(tokens, wanted, step.runs);
  RETURN_IF_ERROR(Describe(batch, choice, layout, tokens, wanted));
  if (group != nullptr) {
    RETURN_IF_ERROR(PlanProducts(step.tokens, step.wanted));
    step.may_time = false;
    RETURN_IF_ERROR(group->Begin(step.tokens, step.wanted));
  }
  RETURN_IF_ERROR(UploadTables());
  RETURN_IF_ERROR(Upload(as_graph ? layout.adjustments : 0,
                         layout.adjustments + adjustments * sizeof(GpuLogitAdjustment)));
  RETURN_IF_CUDA_ERROR(cudaEventRecord(step_begin, stream.get()));
  if (as_graph) {
    RETURN_IF_ERROR(QueueAsGraph(layout, tokens, step.most_spans, step.samples));
  } else {
    RETURN_IF_ERROR(Queue(layout, step.tokens, step.decode_tokens, step.runs, step.wanted, step.most_spans,
                          choice != nullptr, step.samples));
    if (choice != nullptr && step.wanted > 0) RETURN_IF_ERROR(Download(step.wanted));
  }
  RETURN_IF_CUDA_ERROR(cudaEventRecord(step_end, stream.get()));
  if (choice != nullptr) result_rows = step.wanted;
  return {};
}

StatusOr<std::span<const GpuSampleResult>> CudaTransformer::Results() {
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(impl_->stream.get()));
  return std::span<const GpuSampleResult>(impl_->results_pinned.as<GpuSampleResult>(), impl_->result_rows);
}

StatusOr<std::vector<float>> CudaTransformer::Logits(size_t rows) {
  Impl& m = *impl_;
  CHECK(m.has_logits(), "logits of a rank that has none");
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(m.stream.get()));
  if (m.logits_on_host) return std::move(m.host_logits);
  CHECK(rows <= m.logit_rows(), rows, " rows");
  std::vector<float> out(rows * m.config.vocab_size);
  RETURN_IF_ERROR(m.CopyLogits(static_cast<uint32_t>(rows), out.data()));
  RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(m.stream.get()));
  return out;
}

bool CudaTransformer::is_first_of_its_kind() const { return impl_->step.is_first_of_its_kind; }

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
