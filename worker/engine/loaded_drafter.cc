#include "worker/engine/loaded_drafter.h"

#include <algorithm>
#include <utility>

#include "base/machine.h"
#include "worker/engine/group_executor.h"
#include "worker/engine/model_drafter.h"
#include "worker/engine/model_runner.h"

namespace terrace {
namespace {

constexpr char kModelSetting[] = "engine.speculation.model";

// Of a call's first pass, while the answers wait: what fills a device, and what CPUs read in time while a
// device or the other ranks of a group wait.
constexpr uint32_t kDevicePassTokens = 2048, kCpuPassTokens = 256;

uint64_t Less(uint64_t bytes, uint64_t taken) { return bytes - std::min(bytes, taken); }

KvShape ShapeOf(const ModelConfig& config, const DraftTarget& target, KvDType dtype) {
  return {.layers = config.layers,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .block_tokens = target.block_tokens,
          .dtype = dtype};
}

// Beyond the context of the model that answers there is nothing to draft.
uint32_t ContextOf(const ModelConfig& config, const DraftTarget& target) {
  return std::min(config.context_length, target.context_length);
}

std::unique_ptr<Drafter> MakeDrafter(const KvShape& shape, uint32_t context_length, uint32_t max_pass_tokens,
                                     std::unique_ptr<Executor> executor) {
  const ModelDrafter::Options options{.context_length = context_length,
                                      .block_tokens = shape.block_tokens,
                                      .blocks = shape.blocks,
                                      .max_pass_tokens = max_pass_tokens};
  return std::make_unique<ModelDrafter>(options, std::move(executor));
}

// What the device does not do is a wrong configuration, and no reason to run the model that answers
// elsewhere.
Status AsConfigurationError(const Status& error) {
  if (error.code() != StatusCode::kUnimplemented) return error;
  return WithReason(FailedPrecondition("engine.speculation.device: cuda: ", Message(error)), Reason(error));
}

}  // namespace

Status CheckSameTokens(const ModelFiles& target, const ModelFiles& draft) {
  const std::string wanted = TokenizerDigest(*target.text).Hex(), found = TokenizerDigest(*draft.text).Hex();
  if (wanted == found && target.config.vocab_size == draft.config.vocab_size) return {};
  return WithReason(FailedPrecondition(kModelSetting, ": its tokenizer has the digest ", found, " and ",
                                       draft.config.vocab_size, " tokens, that of the model it drafts for ",
                                       wanted, " and ", target.config.vocab_size, ": drafts need the same"),
                    "tokenizer_mismatch");
}

Status CheckDraftModel(const OpenEngineOptions& options) {
  const SpeculationOptions& speculation = options.speculation;
  if (speculation.drafter != "model") return {};
  const auto read = [](const std::string& path) -> StatusOr<ModelFiles> {
    ASSIGN_OR_RETURN(ModelFiles files, OpenWeights(path));
    ASSIGN_OR_RETURN(TextAssets text, OpenText(path));
    files.text = std::make_shared<const TextAssets>(std::move(text));
    return files;
  };
  ASSIGN_OR_RETURN(const ModelFiles target, read(options.model));
  ASSIGN_OR_RETURN(const ModelFiles draft, read(speculation.model));
  RETURN_IF_ERROR(CheckSameTokens(target, draft));
  if (speculation.kv_pool_bytes == 0) return {};
  // Where it will run is not known: on a device blocks may be half as large.
  const bool is_for_cpus = options.device == "cpu" || speculation.device == "cpu";
  const std::string_view usual = is_for_cpus ? "f32" : "bf16";
  ASSIGN_OR_RETURN(const KvDType dtype,
                   ParseKvDType(options.kv_dtype == "auto" ? usual : std::string_view(options.kv_dtype)));
  const uint64_t block = ShapeOf(draft.config, {.block_tokens = options.block_tokens}, dtype).BlockBytes();
  if (speculation.kv_pool_bytes >= block) return {};
  return WithReason(
      ResourceExhausted("engine.speculation.kv_pool_bytes is ", speculation.kv_pool_bytes, "; a block of ",
                        options.block_tokens, " tokens takes ", block, " bytes in ", KvDTypeName(dtype)),
      "kv_pool_too_small");
}

StatusOr<LoadedDrafter> LoadDrafterOnCpus(const ModelFiles& draft, const DraftTarget& target,
                                          const OpenEngineOptions& options, uint64_t reserved_bytes,
                                          ThreadPool& pool) {
  const ModelConfig& config = draft.config;
  // What a device is told to do is nothing for the CPUs beside it.
  const bool is_beside_device = target.is_on_device;
  ASSIGN_OR_RETURN(const OpTable* ops, FindOps(options.kernels));
  ASSIGN_OR_RETURN(const ComputeType compute, ParseComputeType(is_beside_device ? "auto" : options.compute));
  ASSIGN_OR_RETURN(uint64_t free_bytes, FreeMemoryBytes());
  auto transformer = Transformer::Load(config, *draft.weights, *ops, pool,
                                       {.compute = compute,
                                        .free_bytes = Less(free_bytes, reserved_bytes),
                                        .is_cancelled = options.is_cancelled});
  RETURN_IF_ERROR(Annotate(transformer.status(), kModelSetting));
  ASSIGN_OR_RETURN(free_bytes, FreeMemoryBytes());
  KvShape shape = ShapeOf(config, target,
                          is_beside_device && options.kv_dtype == "auto" ? KvDType::kF32 : target.kv_dtype);
  const uint32_t context_length = ContextOf(config, target);
  ASSIGN_OR_RETURN(KvSizing kv, SizeDraftPool({.shape = shape,
                                               .context_length = context_length,
                                               .max_sequences = target.max_sequences,
                                               .pool_bytes = options.speculation.kv_pool_bytes,
                                               .free_bytes = Less(free_bytes, reserved_bytes)}));
  shape.blocks = kv.blocks;
  ASSIGN_OR_RETURN(auto runner, ModelRunner::Create(pool, *std::move(transformer), *ops, shape));
  const uint64_t parameters = runner->transformer().parameters();
  const uint64_t weight_memory_bytes = runner->transformer().packed_bytes();
  std::unique_ptr<Executor> executor = std::move(runner);
  if (options.wrap_draft_executor) executor = options.wrap_draft_executor(std::move(executor));
  if (target.group != nullptr)
    executor = std::make_unique<ExecutorBesideGroup>(*target.group, std::move(executor));
  const bool is_waited_for = is_beside_device || target.group != nullptr;
  const uint32_t pass =
      is_waited_for ? std::min(target.max_step_tokens, kCpuPassTokens) : target.max_step_tokens;
  return LoadedDrafter{.drafter = MakeDrafter(shape, context_length, pass, std::move(executor)),
                       .device = std::string(ops->name),
                       .kv_arithmetic = std::move(kv.arithmetic),
                       .parameters = parameters,
                       .kv_bytes = kv.bytes,
                       .weight_memory_bytes = weight_memory_bytes};
}

StatusOr<DraftWeights> LoadDraftWeights(const DeviceBackend& backend, const ModelFiles& draft,
                                        const OpenEngineOptions& options, ThreadPool& pool) {
  const std::string& place = options.speculation.device;
  if (place == "cpu") return DraftWeights{};
  // Whatever its bits are, the answers' are those of the model that answers: it may be as fast as it can.
  auto model = backend.load({.config = &draft.config,
                             .weights = draft.weights.get(),
                             .pool = &pool,
                             .compute = options.compute,
                             .is_invariant = false,
                             .tuning = options.tuning,
                             .is_cancelled = options.is_cancelled});
  if (model.ok()) return DraftWeights{.model = *std::move(model)};
  const Status error = Annotate(model.status(), kModelSetting);
  if (error.code() != StatusCode::kUnimplemented || place == "cuda") return AsConfigurationError(error);
  return DraftWeights{.model = nullptr, .note = Message(error)};
}

StatusOr<DeviceDraftPlan> PlanDeviceDraft(const DeviceModel& model, const ModelConfig& config,
                                          const DraftTarget& target, const OpenEngineOptions& options,
                                          uint64_t free_bytes) {
  DeviceDraftPlan plan;
  plan.max_pass_tokens = std::min(target.max_step_tokens, kDevicePassTokens);
  plan.limits = {.max_sequences = target.max_sequences,
                 // A pass may take two tokens of each (ModelDrafter::Options).
                 .max_step_tokens = std::max(plan.max_pass_tokens, 2 * target.max_sequences),
                 .context_length = ContextOf(config, target)};
  plan.shape = ShapeOf(config, target, target.kv_dtype);
  const uint64_t passes = model.StepBytes(plan.limits);
  // A pool whose size is set is the first to be had.
  auto kv = SizeDraftPool({.shape = plan.shape,
                           .context_length = plan.limits.context_length,
                           .max_sequences = target.max_sequences,
                           .pool_bytes = options.speculation.kv_pool_bytes,
                           .free_bytes = Less(Less(free_bytes, passes), options.kv_pool_bytes)});
  const std::string taken =
      Concat(free_bytes, " of the device, less ", passes, " for the drafter's passes",
             options.kv_pool_bytes > 0 ? Concat(" and ", options.kv_pool_bytes, " for kv.pool_bytes") : "");
  RETURN_IF_ERROR(Annotate(kv.status(), taken));
  plan.kv = *std::move(kv);
  plan.kv.arithmetic += ": " + taken;
  plan.shape.blocks = plan.kv.blocks;
  plan.bytes = plan.kv.bytes + passes;
  return plan;
}

StatusOr<LoadedDrafter> MakeDeviceDrafter(std::unique_ptr<DeviceModel> model, const DeviceDraftPlan& plan,
                                          const OpenEngineOptions& options) {
  auto executor = model->MakeExecutor(plan.shape, plan.limits);
  if (!executor.ok()) {
    const Status error = Annotate(executor.status(), kModelSetting);
    return options.speculation.device == "cuda" ? AsConfigurationError(error) : error;
  }
  LoadedDrafter drafter;
  drafter.drafter =
      MakeDrafter(plan.shape, plan.limits.context_length, plan.max_pass_tokens, *std::move(executor));
  drafter.device = model->name();
  drafter.kv_arithmetic = plan.kv.arithmetic;
  drafter.parameters = model->parameters();
  drafter.kv_bytes = plan.kv.bytes;
  drafter.weight_memory_bytes = model->weight_bytes();
  drafter.device_model = std::move(model);
  return drafter;
}

}  // namespace terrace
