#include "worker/engine/open_engine.h"

#include <map>
#include <utility>

#include "base/clock.h"
#include "worker/engine/group_executor.h"
#include "worker/engine/loaded_model.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/tensor_names.h"
#include "worker/speculative/ngram_drafter.h"

namespace terrace {
namespace {

// What makes the bits of two KV blocks differ beside the model and the tokens.
std::string KvLayoutName(const ModelConfig& config, const LoadedModel& loaded,
                         const OpenEngineOptions& options) {
  const KvShape& shape = loaded.kv_shape;
  const std::string_view mode =
      loaded.device_model != nullptr && loaded.numerics == "invariant" ? " invariant" : "";
  return Concat(KvDTypeName(shape.dtype), " ", shape.block_tokens, "x", config.layers, "x", config.kv_heads,
                "x", shape.head_dim, " ", loaded.device, " ", options.compute, mode,
                options.virtual_shards > 1 ? Concat(" shards ", options.virtual_shards) : "");
}

// What most weights of the layers' matrices are: of a small model the embedding, which stays as it was, has
// more bytes than all of them.
std::string MainFormat(const ModelFiles& files) {
  std::map<DType, uint64_t> weights;
  for (const TensorRequirement& tensor : RequiredTensors(files.config)) {
    if (!IsPerLayer(tensor.kind) || IsVector(tensor.kind)) continue;
    const auto view = files.weights->Find(tensor.name);
    if (view.ok()) weights[view->dtype] += tensor.shape[0] * tensor.shape[1];  // OpenModel found all
  }
  DType main = DType::kF32;
  uint64_t most = 0;
  for (const auto& [dtype, size] : weights) {
    if (size > most) {
      main = dtype;
      most = size;
    }
  }
  return FormatName(main, files.config);
}

Engine::Options EngineOptions(const OpenEngineOptions& options, const ModelFiles& files,
                              const LoadedModel& loaded) {
  Engine::Options engine;
  SchedulerOptions& scheduler = engine.scheduler;
  scheduler.max_sequences = loaded.max_sequences;
  scheduler.max_step_tokens = loaded.max_step_tokens;
  scheduler.context_length = files.config.context_length;
  scheduler.vocab_size = files.config.vocab_size;
  scheduler.block_tokens = loaded.kv_shape.block_tokens;
  scheduler.blocks = loaded.kv_shape.blocks;
  scheduler.host_blocks = loaded.kv_shape.host_blocks;
  scheduler.prefix_cache = options.prefix_cache;
  scheduler.audits = options.audits;
  scheduler.max_prefill_wait_seconds = options.max_prefill_wait_seconds;
  scheduler.scope.model = files.digest.Hex();
  scheduler.scope.layout = KvLayoutName(files.config, loaded, options);
  scheduler.end_tokens = files.text->tokenizer->special().end;
  engine.inbox = options.inbox;
  engine.drain_seconds = options.drain_seconds;
  engine.on_step = options.on_step;
  engine.on_flush = options.on_flush;
  engine.on_device_lost = options.on_device_lost;
  engine.max_speculated_tokens = options.speculation.max_tokens;
  engine.max_branch_tokens = options.speculation.max_branch_tokens;
  engine.adapts_speculation = options.speculation.adapts;
  engine.on_drafter_failed = options.on_drafter_failed;
  return engine;
}

// Of `loaded`, which may have one. Null where nothing is drafted.
StatusOr<std::unique_ptr<Drafter>> TakeDrafter(const OpenEngineOptions& options, LoadedModel& loaded,
                                               OpenedEngine& opened) {
  const SpeculationOptions& speculation = options.speculation;
  opened.drafter = speculation.drafter;
  if (options.make_drafter) {
    std::unique_ptr<Drafter> made = options.make_drafter(*opened.files);
    opened.drafter = made != nullptr ? std::string(made->name()) : "none";
    return made;
  }
  if (speculation.drafter == "remote")
    return InvalidArgument("engine.speculation.drafter: remote is for terrace-worker only");
  if (speculation.drafter == "none") return std::unique_ptr<Drafter>();
  if (speculation.drafter == "ngram") {
    const NgramDrafter::Options ngram{.min_match = speculation.min_match};
    return std::unique_ptr<Drafter>(std::make_unique<NgramDrafter>(ngram));
  }
  LoadedDrafter& draft = *loaded.drafter;
  opened.draft_device_model = std::move(draft.device_model);
  opened.drafter_device = draft.device;
  opened.drafter_note = draft.note;
  opened.drafter_kv_arithmetic = draft.kv_arithmetic;
  opened.drafter_parameters = draft.parameters;
  opened.drafter_kv_bytes = draft.kv_bytes;
  opened.weight_memory_bytes += draft.weight_memory_bytes;
  return std::move(draft.drafter);
}

}  // namespace

StatusOr<OpenedEngine> OpenEngine(const OpenEngineOptions& options) {
  RETURN_IF_ERROR(ValidateOpenEngineOptions(options));
  CHECK(options.group.rank == 0, "rank ", options.group.rank, " does not lead");
  OpenedEngine opened;
  const MonoTime begin = RealClock().Now();
  ASSIGN_OR_RETURN(ModelFiles files, OpenModel(options.model, OpenModelOptionsOf(options)));
  const double open_seconds = Seconds(RealClock().Now() - begin);
  opened.files = std::make_unique<ModelFiles>(std::move(files));
  if (options.speculation.drafter == "model" && !options.make_drafter) {
    ASSIGN_OR_RETURN(ModelFiles draft_files,
                     OpenModel(options.speculation.model, {.is_cancelled = options.is_cancelled}));
    opened.draft_files = std::make_unique<ModelFiles>(std::move(draft_files));
  }
  ASSIGN_OR_RETURN(LoadedModel loaded, LoadModel(*opened.files, opened.draft_files.get(), options));
  opened.load_times = loaded.load_times;
  opened.load_times.open += open_seconds;
  opened.file_bytes = loaded.file_bytes;
  opened.hashed_bytes = loaded.hashed_bytes;
  opened.parameters = loaded.parameters;
  opened.weight_bytes = loaded.weight_bytes;
  opened.weight_memory_bytes = loaded.weight_memory_bytes;
  opened.kv_bytes = loaded.kv.bytes;
  opened.kv_arithmetic = loaded.kv.arithmetic;
  opened.context_length = opened.files->config.context_length;
  opened.blocks = loaded.kv_shape.blocks;
  opened.host_blocks = loaded.kv_shape.host_blocks;
  opened.block_tokens = loaded.kv_shape.block_tokens;
  opened.kv_dtype = std::string(KvDTypeName(loaded.kv_shape.dtype));
  opened.compute = options.compute;
  opened.numerics = loaded.numerics;
  opened.threads = loaded.threads;
  opened.max_sequences = loaded.max_sequences;
  opened.max_step_tokens = loaded.max_step_tokens;
  opened.device = loaded.device;
  opened.device_note = loaded.device_note;
  opened.weight_dtype = MainFormat(*opened.files);
  opened.ranks = std::move(loaded.ranks);
  opened.stages = options.group.stages;
  ASSIGN_OR_RETURN(std::unique_ptr<Drafter> drafter, TakeDrafter(options, loaded, opened));
  if (loaded.group != nullptr) {  // nothing takes long any more: from now on the others are told of steps
    RETURN_IF_ERROR(loaded.group->AwaitAll());
    loaded.executor =
        std::make_unique<GroupExecutor>(loaded.group->communicator(), std::move(loaded.executor));
    opened.group = std::move(loaded.group);
  }
  Engine::Options engine = EngineOptions(options, *opened.files, loaded);
  opened.pool = std::move(loaded.pool);
  opened.device_model = std::move(loaded.device_model);
  opened.engine = std::make_unique<Engine>(std::move(engine), std::move(loaded.executor), RealClock(),
                                           std::move(drafter));
  return opened;
}

}  // namespace terrace
