#include "worker/engine/loaded_model.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/hash.h"
#include "worker/engine/machine.h"
#include "worker/engine/model_drafter.h"
#include "worker/engine/model_runner.h"

namespace terrace {
namespace {

// What differs where nothing is set. A device is full with more sequences than CPUs are.
struct Defaults {
  uint32_t max_sequences, max_step_tokens;
  KvDType kv_dtype;
};
constexpr Defaults kCpuDefaults = {16, 256, KvDType::kF32}, kDeviceDefaults = {256, 8192, KvDType::kBF16};

// Without weights and executor. A default gives way to what is set: a step has room for every decode.
StatusOr<LoadedModel> Plan(const ModelConfig& config, const OpenEngineOptions& options,
                           const Defaults& defaults) {
  LoadedModel loaded;
  const uint32_t sequences = options.max_sequences, tokens = options.max_step_tokens;
  const uint32_t most = tokens > 0 ? tokens : std::numeric_limits<uint32_t>::max();
  loaded.max_sequences = sequences > 0 ? sequences : std::min(defaults.max_sequences, most);
  loaded.max_step_tokens = tokens > 0 ? tokens : std::max(defaults.max_step_tokens, loaded.max_sequences);
  loaded.threads = options.threads > 0 ? options.threads : UsableCores();
  loaded.kv_shape = {.layers = config.layers,
                     .kv_heads = config.kv_heads,
                     .head_dim = config.head_dim,
                     .block_tokens = options.block_tokens,
                     .dtype = defaults.kv_dtype};
  if (options.kv_dtype != "auto") {
    ASSIGN_OR_RETURN(loaded.kv_shape.dtype, ParseKvDType(options.kv_dtype));
  }
  return loaded;
}

// The blocks of the swap memory, which is the host's wherever the pool is.
StatusOr<uint32_t> HostBlocks(const KvShape& shape, uint64_t swap_bytes, uint64_t free_bytes) {
  if (swap_bytes > 0 && swap_bytes < shape.BlockBytes()) {
    return WithReason(ResourceExhausted("kv.host_swap_bytes is ", swap_bytes, ", a block takes ",
                                        shape.BlockBytes(), "; 0 is for none"),
                      "kv_pool_too_small");
  }
  if (swap_bytes > free_bytes) {
    return WithReason(ResourceExhausted("kv.host_swap_bytes is ", swap_bytes, ", free memory ", free_bytes),
                      "kv_pool_too_small");
  }
  return static_cast<uint32_t>(
      std::min<uint64_t>(swap_bytes / shape.BlockBytes(), std::numeric_limits<BlockId>::max()));
}

// Sizes the pool and its swap memory. After the weights have taken their memory.
Status SizeKv(const ModelConfig& config, const OpenEngineOptions& options, KvPlace place, uint64_t free_bytes,
              LoadedModel& loaded) {
  ASSIGN_OR_RETURN(const uint64_t host_bytes, FreeMemoryBytes());
  KvShape& shape = loaded.kv_shape;
  ASSIGN_OR_RETURN(shape.host_blocks, HostBlocks(shape, options.host_swap_bytes, host_bytes));
  ASSIGN_OR_RETURN(loaded.kv, SizeKvPool({.place = place,
                                          .shape = shape,
                                          .context_length = config.context_length,
                                          .max_sequences = loaded.max_sequences,
                                          .pool_bytes = options.kv_pool_bytes,
                                          .free_bytes = free_bytes}));
  shape.blocks = loaded.kv.blocks;
  return {};
}

// Of what finds no memory; the other errors of a load name the file.
Status NameModel(const Status& status, const OpenEngineOptions& options) {
  return status.code() == StatusCode::kResourceExhausted ? Annotate(status, options.model) : status;
}

StatusOr<LoadedModel> LoadOnCpus(const ModelFiles& files, const OpenEngineOptions& options) {
  const ModelConfig& config = files.config;
  ASSIGN_OR_RETURN(const OpTable* ops, FindOps(options.kernels));
  ASSIGN_OR_RETURN(const ComputeType compute, ParseComputeType(options.compute));
  ASSIGN_OR_RETURN(LoadedModel loaded, Plan(config, options, kCpuDefaults));
  loaded.pool = std::make_unique<ThreadPool>(loaded.threads, options.pin_threads);
  ASSIGN_OR_RETURN(uint64_t free_bytes, FreeMemoryBytes());
  auto transformer = Transformer::Load(config, *files.weights, *ops, *loaded.pool,
                                       {.compute = compute,
                                        .free_bytes = free_bytes,
                                        .is_cancelled = options.is_cancelled,
                                        .virtual_shards = options.virtual_shards});
  RETURN_IF_ERROR(NameModel(transformer.status(), options));
  ASSIGN_OR_RETURN(free_bytes, FreeMemoryBytes());
  RETURN_IF_ERROR(SizeKv(config, options, KvPlace::kHost, free_bytes, loaded));
  ASSIGN_OR_RETURN(auto runner,
                   ModelRunner::Create(*loaded.pool, *std::move(transformer), *ops, loaded.kv_shape));
  loaded.device = std::string(ops->name);
  loaded.numerics = "invariant";
  loaded.parameters = runner->transformer().parameters();
  loaded.weight_bytes = runner->transformer().weight_bytes();
  loaded.executor = std::move(runner);
  return loaded;
}

StatusOr<LoadedModel> LoadOnDevice(const ModelFiles& files, const OpenEngineOptions& options) {
  const ModelConfig& config = files.config;
  RETURN_IF_ERROR(CheckDeviceSettings(options));
  ASSIGN_OR_RETURN(const DeviceBackend* backend, options.find_device());
  ASSIGN_OR_RETURN(LoadedModel loaded, Plan(config, options, kDeviceDefaults));
  ThreadPool pool(loaded.threads, options.pin_threads);
  auto model = backend->load({.config = &config,
                              .weights = files.weights.get(),
                              .pool = &pool,
                              .compute = options.compute,
                              .is_invariant = options.numerics == "invariant",
                              .is_cancelled = options.is_cancelled});
  RETURN_IF_ERROR(NameModel(model.status(), options));
  loaded.device_model = *std::move(model);
  const DeviceLimits limits{.max_sequences = loaded.max_sequences,
                            .max_step_tokens = loaded.max_step_tokens,
                            .context_length = config.context_length};
  ASSIGN_OR_RETURN(const uint64_t free_bytes, loaded.device_model->FreeBytes(limits));
  RETURN_IF_ERROR(SizeKv(config, options, KvPlace::kDevice, free_bytes, loaded));
  ASSIGN_OR_RETURN(loaded.executor, loaded.device_model->MakeExecutor(loaded.kv_shape, limits));
  loaded.device = loaded.device_model->name();
  loaded.numerics = options.numerics;
  loaded.parameters = loaded.device_model->parameters();
  loaded.weight_bytes = loaded.device_model->weight_bytes();
  return loaded;
}

// There is no device, or it does not do this: CPUs may.
bool MayRunOnCpus(const Status& error) {
  return error.code() == StatusCode::kUnavailable || error.code() == StatusCode::kUnimplemented ||
         error.code() == StatusCode::kInvalidArgument;
}

// One tokenizer, so that tokens mean the same, and one vocabulary, so that there are no others.
Status CheckSameTokens(const ModelFiles& target, const ModelFiles& draft) {
  const std::string wanted = TokenizerDigest(*target.text).Hex(), found = TokenizerDigest(*draft.text).Hex();
  if (wanted == found && target.config.vocab_size == draft.config.vocab_size) return {};
  return WithReason(
      FailedPrecondition("engine.speculation.model: its tokenizer has the digest ", found, " and ",
                         draft.config.vocab_size, " tokens, that of the model it drafts for ", wanted,
                         " and ", target.config.vocab_size, ": drafts need the same"),
      "tokenizer_mismatch");
}

// Of the host's memory, without what the pools of `loaded` will take, which is theirs when they first use it.
StatusOr<uint64_t> BytesLeft(const LoadedModel& loaded) {
  const uint64_t pools = loaded.kv.bytes + loaded.kv_shape.host_blocks * loaded.kv_shape.BlockBytes();
  ASSIGN_OR_RETURN(const uint64_t free_bytes, FreeMemoryBytes());
  return free_bytes - std::min(free_bytes, pools);
}

// Blocks of a drafter's pool: what it may hold of all sequences at once, or less, as who finds none gets no
// draft.
StatusOr<uint32_t> DraftBlocks(const KvShape& shape, uint32_t context_length, uint32_t max_sequences,
                               uint64_t pool_bytes, uint64_t free_bytes) {
  constexpr uint64_t kShare = 8;  // of the free memory at most an eighth, unless it is set
  const uint64_t allowed = pool_bytes > 0 ? pool_bytes : free_bytes / kShare;
  const uint64_t wanted = uint64_t{max_sequences} * BlocksFor(context_length, shape.block_tokens);
  uint64_t blocks = allowed / shape.BlockBytes();
  if (pool_bytes == 0) blocks = std::min(blocks, wanted);
  blocks = std::min<uint64_t>(blocks, std::numeric_limits<BlockId>::max());
  if (blocks == 0 || blocks * shape.BlockBytes() > free_bytes) {
    return WithReason(
        ResourceExhausted("engine.speculation: the drafter's KV pool may take ", allowed,
                          " bytes; a block takes ", shape.BlockBytes(), ", free memory ", free_bytes),
        "kv_pool_too_small");
  }
  return static_cast<uint32_t>(blocks);
}

// Asked for by name, what the device does not do is a wrong configuration.
Status AsConfigurationError(const Status& error) {
  if (error.code() != StatusCode::kUnimplemented) return error;
  return WithReason(FailedPrecondition("engine.device: cuda: ", Message(error)), Reason(error));
}

}  // namespace

StatusOr<LoadedModel> LoadModel(const ModelFiles& files, const OpenEngineOptions& options) {
  if (options.device == "cpu") return LoadOnCpus(files, options);
  StatusOr<LoadedModel> on_device = LoadOnDevice(files, options);
  if (on_device.ok()) return on_device;
  if (options.device == "cuda") return AsConfigurationError(on_device.status());
  if (!MayRunOnCpus(on_device.status())) return on_device;
  ASSIGN_OR_RETURN(LoadedModel loaded, LoadOnCpus(files, options));
  loaded.device_note = Message(on_device.status());
  return loaded;
}

StatusOr<LoadedDrafter> LoadModelDrafter(const ModelFiles& target, const ModelFiles& draft,
                                         const OpenEngineOptions& options, const LoadedModel& loaded) {
  CHECK(loaded.pool != nullptr);
  RETURN_IF_ERROR(CheckSameTokens(target, draft));
  const ModelConfig& config = draft.config;
  ASSIGN_OR_RETURN(const OpTable* ops, FindOps(options.kernels));
  ASSIGN_OR_RETURN(const ComputeType compute, ParseComputeType(options.compute));
  ASSIGN_OR_RETURN(uint64_t free_bytes, BytesLeft(loaded));
  auto transformer =
      Transformer::Load(config, *draft.weights, *ops, *loaded.pool,
                        {.compute = compute, .free_bytes = free_bytes, .is_cancelled = options.is_cancelled});
  RETURN_IF_ERROR(Annotate(transformer.status(), "engine.speculation.model"));
  ASSIGN_OR_RETURN(free_bytes, BytesLeft(loaded));
  KvShape shape{.layers = config.layers,
                .kv_heads = config.kv_heads,
                .head_dim = config.head_dim,
                .block_tokens = loaded.kv_shape.block_tokens,
                .dtype = loaded.kv_shape.dtype};
  ASSIGN_OR_RETURN(shape.blocks, DraftBlocks(shape, config.context_length, loaded.max_sequences,
                                             options.speculation.kv_pool_bytes, free_bytes));
  ASSIGN_OR_RETURN(auto runner, ModelRunner::Create(*loaded.pool, *std::move(transformer), *ops, shape));
  LoadedDrafter drafter{.parameters = runner->transformer().parameters(),
                        .kv_bytes = shape.blocks * shape.BlockBytes()};
  drafter.drafter =
      std::make_unique<ModelDrafter>(ModelDrafter::Options{.context_length = config.context_length,
                                                           .block_tokens = shape.block_tokens,
                                                           .blocks = shape.blocks,
                                                           .max_pass_tokens = loaded.max_step_tokens},
                                     std::move(runner));
  return drafter;
}

}  // namespace terrace
