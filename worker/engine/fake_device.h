// A device backend without a device, for tests of what opens one: its executor is a FakeExecutor. What it
// does is said by the one FakeDevice there is at a time.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/version.h"
#include "worker/engine/device_backend.h"
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
    KvShape shape = {};  // then of its executor
    DeviceLimits limits = {};
  };
  std::vector<Loaded> models;

  // For OpenEngineOptions::find_device.
  static StatusOr<const DeviceBackend*> Find() {
    static const DeviceBackend kBackend{.probe = [] { return Status(); }, .load = Load};
    RETURN_IF_ERROR(current_->found);
    return &kBackend;
  }

 private:
  class Model : public DeviceModel {
   public:
    explicit Model(const ModelConfig& config, size_t index)
        : vocab_size_(static_cast<uint32_t>(config.vocab_size)), index_(index) {}
    std::string name() const override { return kName; }
    uint64_t parameters() const override { return 7; }
    uint64_t weight_bytes() const override { return 14; }
    DeviceLoadTimes load_times() const override { return {.read_seconds = 2, .wait_seconds = 1}; }
    StatusOr<uint64_t> FreeBytes() const override { return current_->free_bytes; }
    uint64_t StepBytes(const DeviceLimits&) const override { return current_->step_bytes; }
    StatusOr<std::unique_ptr<Executor>> MakeExecutor(const KvShape& shape,
                                                     const DeviceLimits& limits) override {
      current_->models[index_].shape = shape;
      current_->models[index_].limits = limits;
      RETURN_IF_ERROR(current_->executed);
      if (current_->models[index_].model == current_->unsupported_executor) {
        return WithReason(Unimplemented("no kernels for its keys"), "unsupported_device");
      }
      return std::unique_ptr<Executor>(
          std::make_unique<FakeExecutor>(FakeExecutor::Options{.vocab_size = vocab_size_,
                                                               .block_tokens = shape.block_tokens,
                                                               .lose_device = current_->lose_device}));
    }

   private:
    const uint32_t vocab_size_;
    const size_t index_;  // in models
  };

  static StatusOr<std::unique_ptr<DeviceModel>> Load(const DeviceLoadOptions& options) {
    CHECK(options.config != nullptr && options.weights != nullptr && options.pool != nullptr);
    FakeDevice& device = *current_;
    const std::string& name = options.config->name;
    RETURN_IF_ERROR(device.loaded);
    if (name == device.unsupported_model)
      return WithReason(Unimplemented("no kernels for ", name), "unsupported_device");
    device.models.push_back({.model = name,
                             .compute = options.compute,
                             .is_invariant = options.is_invariant,
                             .tuning_folder = options.tuning.folder});
    return std::unique_ptr<DeviceModel>(std::make_unique<Model>(*options.config, device.models.size() - 1));
  }

  inline static FakeDevice* current_ = nullptr;
};

}  // namespace terrace
