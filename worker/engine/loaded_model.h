// A model in memory, its KV pool beside it, and what runs its steps: the part of OpenEngine that differs
// between CPUs and devices. And a second, smaller one that drafts for it.
#pragma once

#include <memory>
#include <string>

#include "base/parallel_for.h"
#include "base/status.h"
#include "worker/engine/device_backend.h"
#include "worker/engine/executor.h"
#include "worker/engine/kv_sizing.h"
#include "worker/engine/open_engine.h"
#include "worker/formats/model_files.h"
#include "worker/speculative/drafter.h"

namespace terrace {

struct LoadedModel {
  std::unique_ptr<ThreadPool> pool;           // null on a device
  std::unique_ptr<DeviceModel> device_model;  // null on CPUs
  // Borrows what it runs on and what it runs: those, and the files, which outlive it.
  std::unique_ptr<Executor> executor;
  std::string device;  // as of OpenedEngine, like the next two
  std::string device_note = "";
  std::string numerics;
  uint64_t parameters = 0, weight_bytes = 0;
  uint32_t threads = 0;
  uint32_t max_sequences = 0, max_step_tokens = 0;
  KvShape kv_shape;
  KvSizing kv;
};

// On a device or on CPUs, as `options`, which are valid, have it. Errors of OpenEngine.
StatusOr<LoadedModel> LoadModel(const ModelFiles& files, const OpenEngineOptions& options);

struct LoadedDrafter {
  std::unique_ptr<Drafter> drafter = nullptr;  // borrows loaded.pool and the draft's files
  uint64_t parameters = 0, kv_bytes = 0;
};

// A drafter of another model, for `loaded`, which is of `target` and runs on CPUs; `draft` is that model's.
// FAILED_PRECONDITION, reason tokenizer_mismatch, with both digests, when the two do not share their tokens.
StatusOr<LoadedDrafter> LoadModelDrafter(const ModelFiles& target, const ModelFiles& draft,
                                         const OpenEngineOptions& options, const LoadedModel& loaded);

}  // namespace terrace
