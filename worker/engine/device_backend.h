// A device that runs a model whole, with memory of its own: its steps are not made of the ops of an OpTable
// but of kernels that follow each other on the device. The one there is, CUDA, is a library loaded at start
// (worker/engine/device_plugin.h), so that the worker's program needs no toolkit and no driver.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/parallel_for.h"
#include "base/status.h"
#include "worker/engine/executor.h"
#include "worker/formats/model_config.h"
#include "worker/formats/weight_source.h"
#include "worker/kv/kv_pool.h"
#include "worker/parallel/communicator.h"
#include "worker/parallel/shard_plan.h"

namespace terrace {

// Which device a process takes: see DeviceOfRank (worker/engine/device_shard.h).
struct DeviceChoice {
  uint32_t rank = 0;            // of a group
  bool shares_machine = false;  // with all other ranks of it
};

// What was measured of a device's kernels, kept from one process to the next.
struct DeviceTuning {
  std::string folder = "";  // that is there; "": nothing is kept
  // Why nothing is read from there or written to it, at most once for each model; nothing else changes. On
  // the thread that loads, or the engine's.
  std::function<void(const Status&)> on_failed = nullptr;
};

struct DeviceLoadOptions {
  const ModelConfig* config = nullptr;    // copied
  const WeightSource* weights = nullptr;  // read during the call only
  ThreadPool* pool = nullptr;             // of the calling thread, for the call
  std::string compute = "auto";           // auto, or fp8: 16-bit weights become FP8 E4M3
  bool is_invariant = false;              // numerics: invariant
  uint32_t device = 0;                    // as DeviceBackend::open has it
  // Of a group: this rank's part of the model, which is all that is loaded; copied. Null: the whole model.
  const ShardPlan* shard = nullptr;
  DeviceTuning tuning = {};
  std::function<bool()> is_cancelled = nullptr;
};

struct DeviceLimits {
  uint32_t max_sequences = 0, max_step_tokens = 0, context_length = 0;
};

// What a load spent its time on. Copies over the bus and packing on the device go on meanwhile.
struct DeviceLoadTimes {
  double read_seconds = 0;  // from the file's pages, or the disk, to memory that the device copies
  double wait_seconds = 0;  // for the device
};

// A model's weights in the memory of a device.
class DeviceModel {
 public:
  virtual ~DeviceModel() = default;
  virtual std::string name() const = 0;  // "cuda NVIDIA H100 80GB HBM3"
  // Of a group: parameters are the model's, bytes this rank's.
  virtual uint64_t parameters() const = 0;
  virtual uint64_t weight_bytes() const = 0;
  virtual DeviceLoadTimes load_times() const = 0;
  // Of a group, before FreeBytes is asked: connects this rank's device with those of the others, which call
  // it at the same time, for steps of these limits. `group` tells what hosts tell each other, and outlives
  // this and its executor. UNAVAILABLE where what connects devices cannot be had; errors of the communicator
  // and the device.
  virtual Status Connect(Communicator& group, const DeviceLimits& limits) = 0;
  // Memory of the device that nobody has, now.
  virtual StatusOr<uint64_t> FreeBytes() const = 0;
  // What steps of these limits need of it beside the KV pool: MakeExecutor takes both.
  virtual uint64_t StepBytes(const DeviceLimits& limits) const = 0;
  // What runs its steps; borrows the model. Of a group `shape` has this rank's KV heads, all ranks run the
  // same steps, and rank 0 alone chooses tokens: the outputs of others are empty. UNIMPLEMENTED, reason
  // unsupported_device, names what of the shape the device has no kernels for; RESOURCE_EXHAUSTED.
  virtual StatusOr<std::unique_ptr<Executor>> MakeExecutor(const KvShape& shape,
                                                           const DeviceLimits& limits) = 0;
};

// What the library exports as terrace_device_backend().
struct DeviceBackend {
  // UNAVAILABLE, reason no_device, in one line: no driver, or no device. Takes none.
  Status (*probe)() = nullptr;
  // Takes a device for this process, and tells its number. UNAVAILABLE, reason no_device, in one line: one
  // that is too old, or that another process has for itself; errors of DeviceOfRank.
  StatusOr<uint32_t> (*open)(const DeviceChoice&) = nullptr;
  // Errors of Transformer::Load, and those of the device: INTERNAL, reason device_error, with file, line and
  // call.
  StatusOr<std::unique_ptr<DeviceModel>> (*load)(const DeviceLoadOptions&) = nullptr;
};

}  // namespace terrace
