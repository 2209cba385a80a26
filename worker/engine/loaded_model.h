// A model in memory, its KV pool beside it, and what runs its steps: the part of OpenEngine that differs
// between CPUs and devices.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "worker/engine/device_backend.h"
#include "worker/engine/executor.h"
#include "worker/engine/kv_sizing.h"
#include "worker/engine/open_engine.h"
#include "worker/formats/model_files.h"

namespace terrace {

struct LoadedModel {
  std::unique_ptr<DeviceModel> device_model;  // null on CPUs
  std::unique_ptr<Executor> executor;  // borrows what it runs: device_model or the files, which outlive it
  std::string device;                  // as of OpenedEngine, like the next two
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

}  // namespace terrace
