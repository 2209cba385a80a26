#include "worker/engine/loaded_model.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

#include "base/build_id.h"
#include "base/clock.h"
#include "base/machine.h"
#include "worker/engine/device_shard.h"
#include "worker/engine/model_runner.h"
#include "worker/engine/verified_slice.h"

namespace terrace {
namespace {

// Seconds since it was made, or asked before.
class Lap {
 public:
  double Seconds() {
    const MonoTime now = RealClock().Now();
    return terrace::Seconds(now - std::exchange(begin_, now));
  }

 private:
  MonoTime begin_ = RealClock().Now();
};

// What differs where nothing is set. A device is full with more sequences than CPUs are.
struct Defaults {
  uint32_t max_sequences, max_step_tokens;
  KvDType kv_dtype;
};
constexpr Defaults kCpuDefaults = {16, 256, KvDType::kF32}, kDeviceDefaults = {256, 8192, KvDType::kBF16};

// Without weights and executor. A default gives way to what is set: a step has room for every decode.
StatusOr<LoadedModel> Plan(const ModelFiles& files, const OpenEngineOptions& options,
                           const Defaults& defaults) {
  const ModelConfig& config = files.config;
  LoadedModel loaded;
  loaded.file_bytes = loaded.hashed_bytes = files.digest_list.bytes();
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
  ASSIGN_OR_RETURN(uint64_t host_bytes, FreeMemoryBytes());
  if (options.group.shares_machine) {
    host_bytes /= options.group.ranks;
    if (place == KvPlace::kHost) free_bytes /= options.group.ranks;  // each rank has a device of its own
  }
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

// Asked while weights are loaded: without several ranks `group` is null. A rank that is lost meanwhile would
// not be missed before this one has loaded all, which may take minutes.
std::function<bool()> EndsLoad(const OpenEngineOptions& options, RankGroup* group) {
  if (group == nullptr) return options.is_cancelled;
  return [is_cancelled = options.is_cancelled, group] {
    return (is_cancelled && is_cancelled()) || !group->FindLost().ok();
  };
}

// The same of what it ended, with the rank that was lost.
Status NameLoad(const Status& error, const OpenEngineOptions& options, RankGroup* group) {
  const bool is_asked = options.is_cancelled && options.is_cancelled();
  if (error.code() == StatusCode::kCancelled && group != nullptr && !is_asked)
    RETURN_IF_ERROR(group->FindLost());
  return NameModel(error, options);
}

// Of a device whose memory is short for the model that answers: what a drafter there has taken before.
Status NameDrafter(const Status& error, const DraftWeights& weights,
                   const std::optional<DeviceDraftPlan>& plan) {
  if (error.code() != StatusCode::kResourceExhausted || !plan.has_value()) return error;
  return Annotate(error, Concat("beside the drafter's ", weights.model->weight_bytes(),
                                " bytes of weights and ", plan->bytes,
                                " for its pool and passes (engine.speculation.device: cpu, or a "
                                "smaller engine.speculation.kv_pool_bytes, leaves more)"));
}

DraftTarget TargetOf(const LoadedModel& loaded, const ModelConfig& config) {
  return {.is_on_device = loaded.device_model != nullptr,
          .context_length = config.context_length,
          .max_sequences = loaded.max_sequences,
          .max_step_tokens = loaded.max_step_tokens,
          .block_tokens = loaded.kv_shape.block_tokens,
          .kv_dtype = loaded.kv_shape.dtype,
          .group = loaded.group == nullptr ? nullptr : &loaded.group->communicator()};
}

// What all ranks of a group have alike. `kernels`: of what.
RankTraits TraitsOf(const ModelFiles& files, const OpenEngineOptions& options, std::string_view kernels,
                    const KvShape& shape) {
  return {.model_digest = files.digest.Hex(),
          .settings = {{"group.pipeline_parallel", std::to_string(options.group.stages)},
                       {"engine.virtual_shards", std::to_string(options.virtual_shards)},
                       {"engine.compute", options.compute},
                       {"engine.kernels", std::string(kernels)},
                       {"kv.dtype", std::string(KvDTypeName(shape.dtype))},
                       {"kv.block_tokens", std::to_string(shape.block_tokens)}}};
}

// That the part `shard` of the model, which this rank computes with, is of the digest that it tells the
// others.
Status Verify(const ModelFiles& files, const ShardPlan& shard, const OpenEngineOptions& options,
              LoadedModel& loaded) {
  Lap lap;
  ASSIGN_OR_RETURN(loaded.hashed_bytes, VerifySlice(files, shard, options.is_cancelled));
  loaded.load_times.open = lap.Seconds();
  return {};
}

// Connects this rank with the others; null without any. What cannot be shared out, and files that are not
// those of their digest, are told before.
StatusOr<std::unique_ptr<RankGroup>> Join(const ModelFiles& files, const OpenEngineOptions& options,
                                          const OpTable& ops, LoadedModel& loaded) {
  const GroupOptions& group = options.group;
  if (group.ranks == 1) return std::unique_ptr<RankGroup>();
  CHECK(group.join != nullptr, group.ranks, " ranks that cannot join");
  ASSIGN_OR_RETURN(const ShardPlan shard,
                   Transformer::Plan(files.config, *files.weights, ShardOptionsOf(options)));
  RETURN_IF_ERROR(Verify(files, shard, options, loaded));
  return group.join(TraitsOf(files, options, ops.name, loaded.kv_shape));
}

// The same for ranks with a device each; what of the model this one has goes to `shard`. A step is cut where
// its limits say, so that all need the same.
StatusOr<std::unique_ptr<RankGroup>> JoinOnDevice(const ModelFiles& files, const OpenEngineOptions& options,
                                                  const DeviceBackend& backend, LoadedModel& loaded,
                                                  ShardPlan& shard) {
  const GroupOptions& group = options.group;
  if (group.ranks == 1) return std::unique_ptr<RankGroup>();
  CHECK(group.join != nullptr, group.ranks, " ranks that cannot join");
  ASSIGN_OR_RETURN(shard, PlanDeviceShard(files.config, *files.weights, ShardOptionsOf(options)));
  RETURN_IF_ERROR(Verify(files, shard, options, loaded));
  RankTraits traits = TraitsOf(files, options, "cuda", loaded.kv_shape);
  traits.settings.push_back({"the build of CUDA's library", BuildIdAt(&backend)});
  traits.settings.push_back({"engine.numerics", options.numerics});
  traits.settings.push_back({"engine.max_sequences", std::to_string(loaded.max_sequences)});
  traits.settings.push_back({"engine.max_step_tokens", std::to_string(loaded.max_step_tokens)});
  return group.join(traits);
}

// Of a group, once all have taken their memory: its devices.
Status ConnectDevices(const DeviceLimits& limits, LoadedModel& loaded) {
  RETURN_IF_ERROR(loaded.group->AwaitAll());
  RETURN_IF_ERROR(loaded.device_model->Connect(loaded.group->communicator(), limits));
  return loaded.group->AwaitAll();
}

// All ranks take the fewest blocks that one of them has: they are told their numbers.
Status AgreeOnBlocks(Communicator& communicator, uint64_t weight_bytes, LoadedModel& loaded) {
  struct Sizes {
    uint64_t blocks = 0, host_blocks = 0, weight_bytes = 0, block_bytes = 0;
  };
  KvShape& shape = loaded.kv_shape;
  const Sizes mine{shape.blocks, shape.host_blocks, weight_bytes, shape.BlockBytes()};
  std::vector<Sizes> all(communicator.ranks());
  RETURN_IF_ERROR(communicator.AllGather(std::as_bytes(std::span(&mine, 1)),
                                         std::as_writable_bytes(std::span<Sizes>(all))));
  shape.blocks = static_cast<uint32_t>(std::ranges::min(all, {}, &Sizes::blocks).blocks);
  shape.host_blocks = static_cast<uint32_t>(std::ranges::min(all, {}, &Sizes::host_blocks).host_blocks);
  for (const Sizes& rank : all) {
    loaded.ranks.push_back({.weight_bytes = rank.weight_bytes, .kv_bytes = shape.blocks * rank.block_bytes});
  }
  loaded.kv.blocks = shape.blocks;
  loaded.kv.bytes = shape.blocks * shape.BlockBytes();
  loaded.kv.arithmetic += Concat("; of ", all.size(), " ranks the fewest blocks: ", shape.blocks);
  return Status();
}

// What the pools of all ranks on this machine will take when they are first used.
uint64_t PoolBytes(const LoadedModel& loaded, bool shares_machine) {
  const KvShape& shape = loaded.kv_shape;
  const uint64_t blocks = uint64_t{shape.blocks} + shape.host_blocks;
  if (!shares_machine) return blocks * shape.BlockBytes();
  uint64_t bytes = 0;
  for (const RankMemory& rank : loaded.ranks) bytes += blocks * (rank.kv_bytes / shape.blocks);
  return bytes;
}

StatusOr<LoadedModel> LoadOnCpus(const ModelFiles& files, const ModelFiles* draft,
                                 const OpenEngineOptions& options) {
  const ModelConfig& config = files.config;
  ASSIGN_OR_RETURN(const OpTable* ops, FindOps(options.kernels));
  ASSIGN_OR_RETURN(const ComputeType compute, ParseComputeType(options.compute));
  ASSIGN_OR_RETURN(LoadedModel loaded, Plan(files, options, kCpuDefaults));
  ASSIGN_OR_RETURN(loaded.group, Join(files, options, *ops, loaded));
  Communicator* const communicator = loaded.group == nullptr ? nullptr : &loaded.group->communicator();
  loaded.pool = std::make_unique<ThreadPool>(loaded.threads, options.pin_threads);
  ASSIGN_OR_RETURN(uint64_t free_bytes, FreeMemoryBytes());
  Lap lap;
  auto transformer = Transformer::Load(config, *files.weights, *ops, *loaded.pool,
                                       {.compute = compute,
                                        .free_bytes = free_bytes,
                                        .is_cancelled = EndsLoad(options, loaded.group.get()),
                                        .virtual_shards = options.virtual_shards,
                                        .communicator = communicator,
                                        .stages = options.group.stages});
  RETURN_IF_ERROR(NameLoad(transformer.status(), options, loaded.group.get()));
  loaded.load_times.weights = lap.Seconds();
  loaded.kv_shape.layers = static_cast<uint32_t>((*transformer)->plan().layers.size());
  loaded.kv_shape.kv_heads = static_cast<uint32_t>((*transformer)->plan().kv_heads.size());
  if (communicator != nullptr) RETURN_IF_ERROR(loaded.group->AwaitAll());  // all have taken their memory
  ASSIGN_OR_RETURN(free_bytes, FreeMemoryBytes());
  RETURN_IF_ERROR(SizeKv(config, options, KvPlace::kHost, free_bytes, loaded));
  if (communicator != nullptr)
    RETURN_IF_ERROR(AgreeOnBlocks(*communicator, (*transformer)->packed_bytes(), loaded));
  ASSIGN_OR_RETURN(auto runner,
                   ModelRunner::Create(*loaded.pool, *std::move(transformer), *ops, loaded.kv_shape));
  loaded.load_times.executor = lap.Seconds();
  loaded.device = std::string(ops->name);
  loaded.numerics = "invariant";
  loaded.parameters = runner->transformer().model_parameters();
  loaded.weight_bytes = runner->transformer().weight_bytes();
  loaded.weight_memory_bytes = runner->transformer().packed_bytes();
  loaded.executor = std::move(runner);
  if (draft == nullptr) return loaded;
  const bool shares_machine = communicator != nullptr && options.group.shares_machine;
  const uint64_t pools = PoolBytes(loaded, shares_machine);
  ASSIGN_OR_RETURN(loaded.drafter,
                   LoadDrafterOnCpus(*draft, TargetOf(loaded, config), options, pools, *loaded.pool));
  return loaded;
}

StatusOr<LoadedModel> LoadOnDevice(const ModelFiles& files, const ModelFiles* draft,
                                   const OpenEngineOptions& options) {
  const ModelConfig& config = files.config;
  RETURN_IF_ERROR(CheckDeviceSettings(options));
  Lap lap;
  ASSIGN_OR_RETURN(const DeviceBackend* backend, options.find_device());
  ASSIGN_OR_RETURN(const uint32_t device, backend->open({.rank = options.group.rank,
                                                         .shares_machine = options.group.shares_machine}));
  const double device_seconds = lap.Seconds();
  ASSIGN_OR_RETURN(LoadedModel loaded, Plan(files, options, kDeviceDefaults));
  ShardPlan shard;
  ASSIGN_OR_RETURN(loaded.group, JoinOnDevice(files, options, *backend, loaded, shard));
  const bool is_group = loaded.group != nullptr;
  if (is_group) lap.Seconds();  // waiting for the others is no part of the load
  auto pool = std::make_unique<ThreadPool>(loaded.threads, options.pin_threads);
  auto model = backend->load({.config = &config,
                              .weights = files.weights.get(),
                              .pool = pool.get(),
                              .compute = options.compute,
                              .is_invariant = options.numerics == "invariant",
                              .device = device,
                              .shard = is_group ? &shard : nullptr,
                              .tuning = options.tuning,
                              .is_cancelled = EndsLoad(options, loaded.group.get())});
  RETURN_IF_ERROR(NameLoad(model.status(), options, loaded.group.get()));
  loaded.device_model = *std::move(model);
  const DeviceLoadTimes times = loaded.device_model->load_times();
  loaded.load_times = {.open = loaded.load_times.open,
                       .device = device_seconds,
                       .weights = lap.Seconds(),
                       .read = times.read_seconds,
                       .wait = times.wait_seconds};
  DraftWeights weights;
  if (is_group) {
    loaded.kv_shape.kv_heads = static_cast<uint32_t>(shard.kv_heads.size());
    if (options.speculation.device == "auto") weights.note = "in a group on GPUs drafts are made on the CPUs";
  } else if (draft != nullptr) {
    ASSIGN_OR_RETURN(weights, LoadDraftWeights(*backend, *draft, options, *pool));
    loaded.load_times.drafter = lap.Seconds();
  }
  const DeviceLimits limits{.max_sequences = loaded.max_sequences,
                            .max_step_tokens = loaded.max_step_tokens,
                            .context_length = config.context_length};
  if (is_group) RETURN_IF_ERROR(ConnectDevices(limits, loaded));
  ASSIGN_OR_RETURN(const uint64_t found_bytes, loaded.device_model->FreeBytes());
  const uint64_t step_bytes = loaded.device_model->StepBytes(limits);
  uint64_t free_bytes = found_bytes - std::min(found_bytes, step_bytes);
  std::string taken = Concat(found_bytes, " of the device, less ", step_bytes, " for steps");
  const DraftTarget target = TargetOf(loaded, config);
  std::optional<DeviceDraftPlan> draft_plan;
  if (weights.model != nullptr) {
    ASSIGN_OR_RETURN(draft_plan, PlanDeviceDraft(*weights.model, draft->config, target, options, free_bytes));
    free_bytes -= std::min(free_bytes, draft_plan->bytes);
    taken += Concat(" and ", draft_plan->bytes, " for the drafter");
  }
  RETURN_IF_ERROR(
      NameDrafter(SizeKv(config, options, KvPlace::kDevice, free_bytes, loaded), weights, draft_plan));
  loaded.kv.arithmetic += ": " + taken;
  if (is_group) {
    RETURN_IF_ERROR(AgreeOnBlocks(loaded.group->communicator(), loaded.device_model->weight_bytes(), loaded));
  }
  auto executor = loaded.device_model->MakeExecutor(loaded.kv_shape, limits);
  RETURN_IF_ERROR(NameDrafter(executor.status(), weights, draft_plan));
  loaded.executor = *std::move(executor);
  loaded.load_times.executor = lap.Seconds();
  loaded.device = loaded.device_model->name();
  loaded.numerics = options.numerics;
  loaded.parameters = loaded.device_model->parameters();
  loaded.weight_bytes = loaded.device_model->weight_bytes();
  loaded.weight_memory_bytes = loaded.weight_bytes;
  if (draft_plan.has_value()) {
    auto drafter = MakeDeviceDrafter(std::move(weights.model), *draft_plan, options);
    if (drafter.ok()) {
      loaded.drafter = *std::move(drafter);
    } else if (drafter.status().code() == StatusCode::kUnimplemented) {
      weights.note = Message(drafter.status());
    } else {
      return drafter.status();
    }
  }
  if (draft != nullptr && !loaded.drafter.has_value()) {
    loaded.pool = std::move(pool);
    ASSIGN_OR_RETURN(loaded.drafter, LoadDrafterOnCpus(*draft, target, options, 0, *loaded.pool));
    loaded.drafter->note = std::move(weights.note);
  }
  return loaded;
}

// There is no device, or it does not do this: CPUs may.
bool MayRunOnCpus(const Status& error) {
  return error.code() == StatusCode::kUnavailable || error.code() == StatusCode::kUnimplemented ||
         error.code() == StatusCode::kInvalidArgument;
}

// Asked for by name, what the device does not do is a wrong configuration.
Status AsConfigurationError(const Status& error, std::string_view setting) {
  if (error.code() != StatusCode::kUnimplemented) return error;
  return WithReason(FailedPrecondition(setting, ": cuda: ", Message(error)), Reason(error));
}

}  // namespace

StatusOr<LoadedModel> LoadModel(const ModelFiles& files, const ModelFiles* draft,
                                const OpenEngineOptions& options) {
  // Only ranks of a group verify what a list says, of the model that answers.
  CHECK(options.group.ranks > 1 || files.digest_list_path.empty(), "unverified: ", files.digest_list_path);
  CHECK(draft == nullptr || draft->digest_list_path.empty(), "unverified: ", draft->digest_list_path);
  if (draft != nullptr) RETURN_IF_ERROR(CheckSameTokens(files, *draft));
  if (options.device == "cpu") return LoadOnCpus(files, draft, options);
  StatusOr<LoadedModel> on_device = LoadOnDevice(files, draft, options);
  if (on_device.ok()) return on_device;
  if (options.device == "cuda") return AsConfigurationError(on_device.status(), "engine.device");
  if (options.speculation.device == "cuda") {
    return AsConfigurationError(on_device.status(), "engine.speculation.device");
  }
  if (!MayRunOnCpus(on_device.status())) return on_device;
  ASSIGN_OR_RETURN(LoadedModel loaded, LoadOnCpus(files, draft, options));
  loaded.device_note = Message(on_device.status());
  return loaded;
}

}  // namespace terrace
