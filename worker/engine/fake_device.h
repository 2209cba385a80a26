// A device backend without a device, for tests of what opens one: its executor is a FakeExecutor. What it
// does is said by the one FakeDevice there is at a time. Ranks of a group may open one at once, each on a
// thread.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/version.h"
#include "worker/engine/device_backend.h"
#include "worker/engine/device_shard.h"
#include "worker/engine/fake_executor.h"

namespace terrace {

class FakeDevice {
 public:
  static constexpr char kName[] = "cuda Fake 9000";

  FakeDevice() {
    CHECK(current_ == nullptr);
    current_ = this;
  }
  ~FakeDevice() { current_ = nullptr; }
  FakeDevice(const FakeDevice&) = delete;

  // What FakeDevice::Find finds, what Load says, and what MakeExecutor says.
  Status found, loaded, executed;
  std::string unsupported_model = "";     // a model of this name it does not load,
  std::string unsupported_executor = "";  // or loads, and makes no executor of
  std::function<Status()> lose_device =
      nullptr;  // see FakeExecutor; may be called as long as an executor lives
  uint64_t free_bytes = uint64_t{1} << 30, step_bytes = 0;  // step_bytes for each model

  // What it was asked for, of each model in the order of their loads.
  struct Loaded {
    std::string model, compute;
    bool is_invariant = false;
    std::string tuning_folder = "";
    uint32_t rank = 0, ranks = 1, device = 0;  // of a group: as its shard says
    bool is_connected = false;
    KvShape shape = {};  // then of its executor
    DeviceLimits limits = {};
    size_t steps = 0;  // that a rank ran which does not lead
  };
  std::vector<Loaded> models;
  uint32_t devices = 1;  // that a process is shown

  // For OpenEngineOptions::find_device.
  static StatusOr<const DeviceBackend*> Find() {
    static const DeviceBackend kBackend{
        .probe = [] { return Status(); },
        .open = [](const DeviceChoice& choice) { return DeviceOfRank(choice, current_->devices); },
        .load = Load};
    RETURN_IF_ERROR(current_->found);
    return &kBackend;
  }

 private:
  class Model : public DeviceModel {
   public:
    explicit Model(const ModelConfig& config, uint32_t rank, size_t index)
        : vocab_size_(static_cast<uint32_t>(config.vocab_size)), rank_(rank), index_(index) {}
    std::string name() const override { return kName; }
    uint64_t parameters() const override { return 7; }
    uint64_t weight_bytes() const override { return 14; }
    DeviceLoadTimes load_times() const override { return {.read_seconds = 2, .wait_seconds = 1}; }
    Status Connect(Communicator& group, const DeviceLimits&) override {
      {
        std::lock_guard lock(current_->mutex_);
        current_->models[index_].is_connected = true;
      }
      return group.Barrier();
    }
    StatusOr<uint64_t> FreeBytes() const override { return current_->free_bytes; }
    uint64_t StepBytes(const DeviceLimits&) const override { return current_->step_bytes; }
    StatusOr<std::unique_ptr<Executor>> MakeExecutor(const KvShape& shape,
                                                     const DeviceLimits& limits) override {
      std::lock_guard lock(current_->mutex_);
      current_->models[index_].shape = shape;
      current_->models[index_].limits = limits;
      RETURN_IF_ERROR(current_->executed);
      if (rank_ > 0) return std::unique_ptr<Executor>(std::make_unique<Following>(index_));
      if (current_->models[index_].model == current_->unsupported_executor) {
        return WithReason(Unimplemented("no kernels for its keys"), "unsupported_device");
      }
      return std::unique_ptr<Executor>(
          std::make_unique<FakeExecutor>(FakeExecutor::Options{.vocab_size = vocab_size_,
                                                               .block_tokens = shape.block_tokens,
                                                               .lose_device = current_->lose_device}));
    }

   private:
    const uint32_t vocab_size_, rank_;
    const size_t index_;  // in models
  };

  // Of a rank that does not lead, whose plans have nothing that a token could be chosen by.
  class Following : public Executor {
   public:
    explicit Following(size_t index) : index_(index) {}
    StepResult Run(const StepPlan& plan) override {
      std::lock_guard lock(current_->mutex_);
      ++current_->models[index_].steps;
      return {.outputs = std::vector<SequenceOutput>(plan.sequences.size())};
    }

   private:
    const size_t index_;
  };

  static StatusOr<std::unique_ptr<DeviceModel>> Load(const DeviceLoadOptions& options) {
    CHECK(options.config != nullptr && options.weights != nullptr && options.pool != nullptr);
    FakeDevice& device = *current_;
    std::lock_guard lock(device.mutex_);
    const ShardPlan shard = options.shard == nullptr ? ShardPlan() : *options.shard;
    const std::string& name = options.config->name;
    RETURN_IF_ERROR(device.loaded);
    if (name == device.unsupported_model)
      return WithReason(Unimplemented("no kernels for ", name), "unsupported_device");
    device.models.push_back({.model = name,
                             .compute = options.compute,
                             .is_invariant = options.is_invariant,
                             .tuning_folder = options.tuning.folder,
                             .rank = shard.tensor_rank,
                             .ranks = shard.tensor_ranks,
                             .device = options.device});
    return std::unique_ptr<DeviceModel>(
        std::make_unique<Model>(*options.config, shard.tensor_rank, device.models.size() - 1));
  }

  std::mutex mutex_;  // of `models`, while ranks open
  inline static FakeDevice* current_ = nullptr;
};

}  // namespace terrace
