#include "worker/engine/open_engine.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "worker/engine/kv_sizing.h"
#include "worker/engine/machine.h"
#include "worker/engine/model_runner.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxThreads = 1024, kMaxSequences = 4096;
constexpr double kMaxPrefillWait = 3600, kMaxDrain = 3600;
constexpr uint32_t kMaxStepTokens = 1u << 16, kMaxInbox = 1u << 16;

Status CheckRange(std::string_view name, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return {};
  return WithReason(InvalidArgument(name, " is ", value, ", not in [", low, ", ", high, "]"),
                    "invalid_value");
}

// What makes the bits of two KV blocks differ beside the model and the tokens.
std::string KvLayoutName(const KvShape& shape, std::string_view backend, std::string_view compute) {
  return Concat(KvDTypeName(shape.dtype), " ", shape.block_tokens, "x", shape.layers, "x", shape.kv_heads,
                "x", shape.head_dim, " ", backend, " ", compute);
}

// The dtype that most weight bytes have.
std::string MainDType(const WeightSource& weights) {
  std::map<DType, uint64_t> bytes;
  for (const auto& entry : weights.entries()) bytes[entry.tensor.dtype] += entry.tensor.bytes;
  DType main = DType::kF32;
  uint64_t most = 0;
  for (const auto& [dtype, size] : bytes) {
    if (size > most) {
      main = dtype;
      most = size;
    }
  }
  return std::string(Info(main).name);
}

}  // namespace

Status ValidateOpenEngineOptions(const OpenEngineOptions& options) {
  if (options.threads != 0) RETURN_IF_ERROR(CheckRange("engine.threads", options.threads, 1, kMaxThreads));
  RETURN_IF_ERROR(CheckRange("engine.max_sequences", options.max_sequences, 1, kMaxSequences));
  // A step has room for every decode.
  RETURN_IF_ERROR(
      CheckRange("engine.max_step_tokens", options.max_step_tokens, options.max_sequences, kMaxStepTokens));
  RETURN_IF_ERROR(CheckRange("engine.inbox", options.inbox, 1, kMaxInbox));
  RETURN_IF_ERROR(CheckRange("kv.block_tokens", options.block_tokens, 1, kMaxBlockTokens));
  RETURN_IF_ERROR(Annotate(ParseKvDType(options.kv_dtype).status(), "kv.dtype"));
  if (!(options.max_prefill_wait_seconds > 0 && options.max_prefill_wait_seconds <= kMaxPrefillWait)) {
    return WithReason(InvalidArgument("engine.max_prefill_wait_seconds is ", options.max_prefill_wait_seconds,
                                      ", not in (0, ", kMaxPrefillWait, "]"),
                      "invalid_value");
  }
  if (!(options.drain_seconds >= 0 && options.drain_seconds <= kMaxDrain)) {
    return WithReason(
        InvalidArgument("drain_seconds is ", options.drain_seconds, ", not in [0, ", kMaxDrain, "]"),
        "invalid_value");
  }
  for (const Status& found :
       {FindOps(options.kernels).status(), ParseComputeType(options.compute).status()}) {
    if (!found.ok()) return WithReason(InvalidArgument("engine.", Message(found)), Reason(found));
  }
  return {};
}

StatusOr<OpenedEngine> OpenEngine(const OpenEngineOptions& options) {
  RETURN_IF_ERROR(ValidateOpenEngineOptions(options));
  ASSIGN_OR_RETURN(const OpTable* ops, FindOps(options.kernels));
  ASSIGN_OR_RETURN(const ComputeType compute, ParseComputeType(options.compute));
  OpenedEngine opened;
  ASSIGN_OR_RETURN(ModelFiles files, OpenModel(options.model));
  opened.files = std::make_unique<ModelFiles>(std::move(files));
  const ModelConfig& config = opened.files->config;

  opened.threads = options.threads > 0 ? options.threads : UsableCores();
  auto pool = std::make_unique<ThreadPool>(opened.threads, options.pin_threads);
  // Before the KV pool is sized: weights take memory.
  ASSIGN_OR_RETURN(uint64_t free_bytes, FreeMemoryBytes());
  auto transformer = Transformer::Load(config, *opened.files->weights, *ops, *pool, compute, free_bytes,
                                       options.is_cancelled);
  if (transformer.status().code() == StatusCode::kResourceExhausted) {
    return Annotate(transformer.status(), options.model);  // the other errors name it
  }
  RETURN_IF_ERROR(transformer.status());
  ASSIGN_OR_RETURN(free_bytes, FreeMemoryBytes());
  ASSIGN_OR_RETURN(const KvDType kv_dtype, ParseKvDType(options.kv_dtype));
  KvShape shape{.layers = config.layers,
                .kv_heads = config.kv_heads,
                .head_dim = config.head_dim,
                .block_tokens = options.block_tokens,
                .dtype = kv_dtype};
  if (options.host_swap_bytes > 0 && options.host_swap_bytes < shape.BlockBytes()) {
    return WithReason(ResourceExhausted("kv.host_swap_bytes is ", options.host_swap_bytes, ", a block takes ",
                                        shape.BlockBytes(), "; 0 is for none"),
                      "kv_pool_too_small");
  }
  if (options.host_swap_bytes > free_bytes) {
    return WithReason(
        ResourceExhausted("kv.host_swap_bytes is ", options.host_swap_bytes, ", free memory ", free_bytes),
        "kv_pool_too_small");
  }
  ASSIGN_OR_RETURN(const KvSizing sizing, SizeKvPool({.shape = shape,
                                                      .context_length = config.context_length,
                                                      .max_sequences = options.max_sequences,
                                                      .pool_bytes = options.kv_pool_bytes,
                                                      .free_bytes = free_bytes - options.host_swap_bytes}));
  shape.blocks = sizing.blocks;
  shape.host_blocks = static_cast<uint32_t>(
      std::min<uint64_t>(options.host_swap_bytes / shape.BlockBytes(), std::numeric_limits<BlockId>::max()));

  ASSIGN_OR_RETURN(auto runner, ModelRunner::Create(std::move(pool), *std::move(transformer), *ops, shape));
  opened.parameters = runner->transformer().parameters();
  opened.weight_bytes = runner->transformer().weight_bytes();
  opened.kv_bytes = sizing.bytes;
  opened.kv_arithmetic = sizing.arithmetic;
  opened.context_length = config.context_length;
  opened.blocks = sizing.blocks;
  opened.host_blocks = shape.host_blocks;
  opened.kv_dtype = options.kv_dtype;
  opened.compute = options.compute;
  opened.block_tokens = options.block_tokens;
  opened.max_sequences = options.max_sequences;
  opened.device = std::string(ops->name);
  opened.weight_dtype = MainDType(*opened.files->weights);
  Engine::Options engine_options;
  SchedulerOptions& scheduler = engine_options.scheduler;
  scheduler.max_sequences = options.max_sequences;
  scheduler.max_step_tokens = options.max_step_tokens;
  scheduler.context_length = config.context_length;
  scheduler.vocab_size = config.vocab_size;
  scheduler.block_tokens = options.block_tokens;
  scheduler.blocks = sizing.blocks;
  scheduler.host_blocks = shape.host_blocks;
  scheduler.prefix_cache = options.prefix_cache;
  scheduler.max_prefill_wait_seconds = options.max_prefill_wait_seconds;
  scheduler.scope.model = opened.files->digest.Hex();
  scheduler.scope.layout = KvLayoutName(shape, ops->name, options.compute);
  scheduler.end_tokens = opened.files->text->tokenizer->special().end;
  engine_options.inbox = options.inbox;
  engine_options.drain_seconds = options.drain_seconds;
  engine_options.on_step = options.on_step;
  opened.engine = std::make_unique<Engine>(std::move(engine_options), std::move(runner));
  return opened;
}

}  // namespace terrace
