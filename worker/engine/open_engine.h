// A model on disk to a running Engine: what terrace-worker and the CLI's in-process commands share.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "text/text_assets.h"
#include "worker/engine/device_plugin.h"
#include "worker/engine/engine.h"
#include "worker/engine/rank_group.h"
#include "worker/formats/model_files.h"
#include "worker/parallel/shard_plan.h"
#include "worker/speculative/drafter.h"

namespace terrace {

// What is drafted for every sequence, beside what comes with it (SequenceSpec::draft).
struct SpeculationOptions {
  // none, ngram (see NgramDrafter), model (see ModelDrafter) or remote (make_drafter makes it)
  std::string drafter = "none";
  std::string model = "";       // of drafter: model; a folder or a .gguf file
  std::string device = "auto";  // of model: cpu; cuda; auto: where the model that answers is, if it can be
  uint32_t max_tokens = 8;      // for a sequence and step
  // Of a second guess that begins otherwise, verified beside the first where that pays; 0: there are none.
  uint32_t max_branch_tokens = 0;
  uint32_t min_match = 3;      // of ngram: tokens that came before
  uint64_t kv_pool_bytes = 0;  // of model; 0: max_sequences full contexts, at most an eighth of free memory
  bool adapts = true;          // false: max_tokens for all, whatever it costs; tests and benchmarks
};

struct OpenEngineOptions {
  std::string model;             // a folder or a .gguf file
  uint32_t threads = 0;          // 0: all cores this process may use
  uint32_t max_sequences = 0;    // 0: 16, on a device 256
  uint32_t max_step_tokens = 0;  // 0: 256, on a device 8192
  uint32_t inbox = 256;
  uint32_t block_tokens = 16;
  uint64_t kv_pool_bytes = 0;     // 0: max_sequences full contexts, at most what SizeKvPool leaves
  std::string kv_dtype = "auto";  // auto (f32, on a device bf16), f32, f16, bf16, int8 or fp8
  bool prefix_cache = true;
  uint64_t host_swap_bytes = 0;  // for blocks of preempted sequences; 0: they are recomputed
  double max_prefill_wait_seconds = 5;
  double drain_seconds = 1;       // see Engine::Drain
  std::string kernels = "auto";   // of the CPUs: auto, cpu or reference
  std::string compute = "auto";   // auto, f32 (CPUs: see ComputeType) or fp8 (see DeviceLoadOptions)
  bool pin_threads = false;       // see ThreadPool
  std::string device = "auto";    // cpu; cuda; auto: CUDA where it can run the model with these settings
  std::string numerics = "auto";  // auto or invariant, of a device: see DeviceLoadOptions
  DeviceTuning tuning = {};       // of a device
  // A multiple of the ranks of a stage of `group`, on a device as many: see worker/parallel/shard_plan.h.
  uint32_t virtual_shards = 1;
  GroupOptions group = {};  // on devices of one stage, and with device: cuda
  bool audits = false;      // see SchedulerOptions
  SpeculationOptions speculation = {};
  std::function<void(const StepObservation&)> on_step = nullptr;
  std::function<void()> on_flush = nullptr;
  std::function<void(const Status&)> on_device_lost = nullptr;     // see Engine::Options
  std::function<void(const Status&)> on_drafter_failed = nullptr;  // the same
  std::function<bool()> is_cancelled = nullptr;                    // asked while weights are loaded
  std::function<StatusOr<const DeviceBackend*>()> find_device = LoadDevicePlugin;  // tests have others
  // Instead of what speculation.drafter names, for a model with these files: `remote`, tests and benchmarks.
  std::function<std::unique_ptr<Drafter>(const ModelFiles& files)> make_drafter = nullptr;
  // Around that of a drafter's model on the CPUs: benchmarks choose its tokens.
  std::function<std::unique_ptr<Executor>(std::unique_ptr<Executor>)> wrap_draft_executor = nullptr;
};

// Where the time of OpenEngine went, in seconds.
struct LoadTimes {
  double open = 0;      // the model's files: reading them once, or what a rank uses of them, for their digest
  double device = 0;    // finding it, and its driver's part
  double weights = 0;   // to where they are computed with; on a device also
  double read = 0;      // ... of it, reading, and
  double wait = 0;      // ... waiting for the device: see DeviceLoadTimes
  double drafter = 0;   // a draft model's weights, on a device
  double executor = 0;  // KV pool and what else steps need
};

struct OpenedEngine {
  // All of these outlive the engine, which borrows them.
  std::unique_ptr<ModelFiles> files;                // weights stay mapped
  std::unique_ptr<ModelFiles> draft_files;          // of the drafter's model; null without one
  std::unique_ptr<RankGroup> group;                 // null where this process has the model alone
  std::unique_ptr<ThreadPool> pool;                 // null on a device, unless the drafter runs on it
  std::unique_ptr<DeviceModel> device_model;        // null on CPUs
  std::unique_ptr<DeviceModel> draft_device_model;  // of the drafter's model; null on CPUs and without one
  // Of a group: parameters are the model's, bytes this rank's.
  uint64_t parameters = 0, weight_bytes = 0, kv_bytes = 0;
  // Memory that weights take as they are computed with, a drafter's too; weight_bytes are the file's.
  uint64_t weight_memory_bytes = 0;
  uint64_t file_bytes = 0, hashed_bytes = 0;  // as of LoadedModel
  std::vector<RankMemory> ranks;              // of a group
  uint32_t stages = 1;                        // of the pipeline that they are
  uint32_t context_length = 0, blocks = 0, block_tokens = 0, max_sequences = 0, threads = 0;
  uint32_t max_step_tokens = 0;
  uint32_t host_blocks = 0;  // of the swap memory
  std::string kv_dtype;
  std::string compute;
  std::string kv_arithmetic;  // how the KV pool got its size, for the log
  std::string device;         // "cpu avx512", "cuda NVIDIA H100 80GB HBM3"
  std::string device_note;    // why it is the CPUs, in one line, where device: auto looked for another one
  std::string numerics;       // invariant or auto; on CPUs always invariant
  std::string weight_dtype;   // of most weights of the layers' matrices
  std::string drafter;        // none, ngram, model or remote
  // Of drafter: model, as of the model that answers; else empty.
  std::string drafter_device, drafter_note, drafter_kv_arithmetic;
  uint64_t drafter_parameters = 0, drafter_kv_bytes = 0;
  LoadTimes load_times;
  std::unique_ptr<Engine> engine;
};

// INVALID_ARGUMENT, reason invalid_value, for a number out of range or an unknown name; the message begins
// with the setting as the worker's configuration has it, such as engine.threads.
Status ValidateOpenEngineOptions(const OpenEngineOptions& options);
// Of that, what a device does not do though CPUs do. An error where `device` is cuda; where it is auto, the
// reason to run on the CPUs.
Status CheckDeviceSettings(const OpenEngineOptions& options);
// What of a model's parts this rank asks for.
ShardOptions ShardOptionsOf(const OpenEngineOptions& options);
// How a process opens the model that answers: LoadModel verifies what a rank of a group uses of it.
OpenModelOptions OpenModelOptionsOf(const OpenEngineOptions& options);
// Whether this rank can have its part of the model, as it would say when it opens it; OK without a group and
// virtual shards. Reads the model's shape and the list of its tensors. Errors of OpenWeights, and reason
// cannot_shard.
Status CheckShards(const OpenEngineOptions& options);
// Whether the model of speculation.model, if it drafts, has the tokens of the one it drafts for, and its
// pool, if its size is set, room for a block: as OpenEngine would say. Reads what CheckShards does, and
// tokenizers. Errors of OpenWeights and OpenText; FAILED_PRECONDITION, reason tokenizer_mismatch;
// RESOURCE_EXHAUSTED, reason kv_pool_too_small.
Status CheckDraftModel(const OpenEngineOptions& options);

// Of a group only its leader opens an engine; the others are Followers (worker/engine/follower.h). Errors of
// ValidateOpenEngineOptions and OpenModel, of a group those of GroupOptions::join, RankGroup::AwaitAll and
// PlanShard; RESOURCE_EXHAUSTED when the weights find no memory or
// the KV pool cannot hold one full context, with needed and free bytes; CANCELLED. Of a device that was asked
// for: UNAVAILABLE (no_device), FAILED_PRECONDITION (unsupported_device), and those of its load. Of a
// drafter's model: the same, and FAILED_PRECONDITION (tokenizer_mismatch) with both digests.
StatusOr<OpenedEngine> OpenEngine(const OpenEngineOptions& options);

}  // namespace terrace
