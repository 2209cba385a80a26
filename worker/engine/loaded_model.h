// A model in memory, its KV pool beside it, and what runs its steps: the part of OpenEngine that differs
// between CPUs and devices. And what drafts for it, where that is a second, smaller model.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/parallel_for.h"
#include "base/status.h"
#include "worker/engine/device_backend.h"
#include "worker/engine/executor.h"
#include "worker/engine/kv_sizing.h"
#include "worker/engine/loaded_drafter.h"
#include "worker/engine/open_engine.h"
#include "worker/engine/rank_group.h"
#include "worker/formats/model_files.h"

namespace terrace {

struct LoadedModel {
  std::unique_ptr<RankGroup> group;           // null where this process has the model alone
  std::unique_ptr<ThreadPool> pool;           // null on a device, unless the drafter runs on it
  std::unique_ptr<DeviceModel> device_model;  // null on CPUs; borrows `group`
  // Borrows what it runs on and what it runs: those, and the files, which outlive it.
  std::unique_ptr<Executor> executor;
  std::string device;  // as of OpenedEngine, like the next two
  std::string device_note = "";
  std::string numerics;
  uint64_t parameters = 0, weight_bytes = 0;  // as of OpenedEngine, like the next one
  uint64_t weight_memory_bytes = 0;           // without the drafter's
  std::vector<RankMemory> ranks;
  uint32_t threads = 0;
  uint32_t max_sequences = 0, max_step_tokens = 0;
  KvShape kv_shape;
  KvSizing kv;
  std::optional<LoadedDrafter> drafter;  // borrows `pool` on CPUs
  // Of the weight files, without the drafter's: bytes, and how many of them were read for their digest.
  uint64_t file_bytes = 0, hashed_bytes = 0;
  LoadTimes load_times = {};  // of `open` what verifying the files took
};

// On a device or on CPUs, as `options`, which are valid, have it; with a drafter of the model `draft`, unless
// null. Of a group: this rank's part, where all ranks call it, and `executor` runs steps only together with
// theirs. Errors of OpenEngine.
StatusOr<LoadedModel> LoadModel(const ModelFiles& files, const ModelFiles* draft,
                                const OpenEngineOptions& options);

}  // namespace terrace
