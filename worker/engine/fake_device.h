// A device backend without a device, for tests of what opens one: its executor is a FakeExecutor. What it
// does is said by the one FakeDevice there is at a time.
#pragma once

#include <memory>
#include <string>
#include <utility>

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

  // What FakeDevice::Find finds, what Load says, and what MakeExecutor says; then what it was asked for.
  Status found, loaded, executed;
  std::function<Status()> lose_device =
      nullptr;  // see FakeExecutor; may be called as long as an executor lives
  uint64_t free_bytes = uint64_t{1} << 30;
  KvShape shape;
  DeviceLimits limits;
  std::string compute;
  bool is_invariant = false;

  // For OpenEngineOptions::find_device.
  static StatusOr<const DeviceBackend*> Find() {
    static const DeviceBackend kBackend{.probe = [] { return Status(); }, .load = Load};
    RETURN_IF_ERROR(current_->found);
    return &kBackend;
  }

 private:
  class Model : public DeviceModel {
   public:
    explicit Model(const ModelConfig& config) : vocab_size_(static_cast<uint32_t>(config.vocab_size)) {}
    std::string name() const override { return kName; }
    uint64_t parameters() const override { return 7; }
    uint64_t weight_bytes() const override { return 14; }
    StatusOr<uint64_t> FreeBytes(const DeviceLimits&) const override { return current_->free_bytes; }
    StatusOr<std::unique_ptr<Executor>> MakeExecutor(const KvShape& shape,
                                                     const DeviceLimits& limits) override {
      current_->shape = shape;
      current_->limits = limits;
      RETURN_IF_ERROR(current_->executed);
      return std::unique_ptr<Executor>(
          std::make_unique<FakeExecutor>(FakeExecutor::Options{.vocab_size = vocab_size_,
                                                               .block_tokens = shape.block_tokens,
                                                               .lose_device = current_->lose_device}));
    }

   private:
    const uint32_t vocab_size_;
  };

  static StatusOr<std::unique_ptr<DeviceModel>> Load(const DeviceLoadOptions& options) {
    CHECK(options.config != nullptr && options.weights != nullptr && options.pool != nullptr);
    current_->compute = options.compute;
    current_->is_invariant = options.is_invariant;
    RETURN_IF_ERROR(current_->loaded);
    return std::unique_ptr<DeviceModel>(std::make_unique<Model>(*options.config));
  }

  inline static FakeDevice* current_ = nullptr;
};

}  // namespace terrace
