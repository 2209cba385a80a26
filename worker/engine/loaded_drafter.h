// A smaller model in memory that drafts for the one that answers (ModelDrafter): on the same device, or on
// CPUs. On a device its weights are loaded behind those of the model that answers, and its pool has its size
// before that model's pool, which may take all that is left.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/parallel_for.h"
#include "base/status.h"
#include "worker/engine/device_backend.h"
#include "worker/engine/kv_sizing.h"
#include "worker/engine/open_engine.h"
#include "worker/formats/model_files.h"
#include "worker/parallel/communicator.h"
#include "worker/speculative/drafter.h"

namespace terrace {

struct LoadedDrafter {
  std::unique_ptr<DeviceModel> device_model = nullptr;  // null on CPUs
  // Borrows it, or the threads it was loaded with, and the draft's files.
  std::unique_ptr<Drafter> drafter;
  std::string device;  // as of OpenedEngine, like the next two
  std::string note = "";
  std::string kv_arithmetic;
  uint64_t parameters = 0, kv_bytes = 0;
  uint64_t weight_memory_bytes = 0;
};

// What a drafter has to know of the model that answers.
struct DraftTarget {
  bool is_on_device = false;
  uint32_t context_length = 0, max_sequences = 0, max_step_tokens = 0, block_tokens = 0;
  KvDType kv_dtype = KvDType::kF32;
  Communicator* group = nullptr;  // whose other ranks wait while it drafts; may be null; outlives it
};

// One tokenizer, so that tokens mean the same, and one vocabulary, so that there are no others:
// FAILED_PRECONDITION, reason tokenizer_mismatch, with both digests.
Status CheckSameTokens(const ModelFiles& target, const ModelFiles& draft);

// Of the host's free memory the model that answers will still take `reserved_bytes`. Errors of
// Transformer::Load; RESOURCE_EXHAUSTED, reason kv_pool_too_small.
StatusOr<LoadedDrafter> LoadDrafterOnCpus(const ModelFiles& draft, const DraftTarget& target,
                                          const OpenEngineOptions& options, uint64_t reserved_bytes,
                                          ThreadPool& pool);

// The weights of a drafter on a device, not yet with a pool.
struct DraftWeights {
  std::unique_ptr<DeviceModel> model = nullptr;  // null: it is for the CPUs
  std::string note = "";  // why, where speculation.device: auto looked for another place
};
// As speculation.device has it. FAILED_PRECONDITION, reason unsupported_device, where it is cuda and the
// device has no kernels for the model.
StatusOr<DraftWeights> LoadDraftWeights(const DeviceBackend& backend, const ModelFiles& draft,
                                        const OpenEngineOptions& options, ThreadPool& pool);

// A drafter's executor on a device, before it is made.
struct DeviceDraftPlan {
  KvShape shape;
  KvSizing kv;
  DeviceLimits limits;
  uint32_t max_pass_tokens = 0;
  uint64_t bytes = 0;  // of the device: the pool, and what passes need beside it
};
// `free_bytes` of the device are for the pools and the drafter's passes. RESOURCE_EXHAUSTED, reason
// kv_pool_too_small.
StatusOr<DeviceDraftPlan> PlanDeviceDraft(const DeviceModel& model, const ModelConfig& config,
                                          const DraftTarget& target, const OpenEngineOptions& options,
                                          uint64_t free_bytes);
// UNIMPLEMENTED where the device has no kernels for such keys and values and CPUs may draft.
StatusOr<LoadedDrafter> MakeDeviceDrafter(std::unique_ptr<DeviceModel> model, const DeviceDraftPlan& plan,
                                          const OpenEngineOptions& options);

}  // namespace terrace
