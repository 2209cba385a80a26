// libfake_device.so: a device for terrace-worker, which loads it where TERRACE_CUDA_PLUGIN names it, without
// any hardware. It runs models on one thread with the reference kernels, so that its answers have the bits of
// a worker with kernels: reference, compute: f32 and the same kv.dtype, and fails as TERRACE_FAKE_DEVICE
// says:
//
//   lose@N           step N of the process loses it: on the way its results were spoilt. The first steps are
//                    those of the worker's warm-up
//   hang@N           step N of the process never ends, and nothing says so
//   absent           there is a library, but no device
//   another_version  the library was built apart from the worker
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "base/machine.h"
#include "base/parallel_for.h"
#include "base/status.h"
#include "kernels/op_table.h"
#include "worker/engine/device_abi.h"
#include "worker/engine/device_backend.h"
#include "worker/engine/device_rules.h"
#include "worker/engine/model_runner.h"
#include "worker/model/transformer.h"

namespace terrace {
namespace {

std::string_view Behaviour() {
  const char* const text = std::getenv("TERRACE_FAKE_DEVICE");
  return text == nullptr ? "" : text;
}

// At which step which behaviour begins. Counted from 1; 0 is none.
struct BadSteps {
  uint64_t losing = 0, hanging = 0;
};

BadSteps ReadBadSteps() {
  const std::string_view text = Behaviour();
  BadSteps steps;
  if (text.empty() || text == "absent" || text == "another_version") return steps;
  const bool loses = text.starts_with("lose@");
  CHECK(loses || text.starts_with("hang@"), "TERRACE_FAKE_DEVICE=", text);
  uint64_t& step = loses ? steps.losing : steps.hanging;
  const std::string_view number = text.substr(text.find('@') + 1);
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), step);
  CHECK(error == std::errc() && end == number.data() + number.size() && step > 0,
        "TERRACE_FAKE_DEVICE=", text);
  return steps;
}

class FakeDeviceRunner : public Executor {
 public:
  explicit FakeDeviceRunner(std::unique_ptr<Executor> runner) : runner_(std::move(runner)) {}

  StepResult Run(const StepPlan& plan) override {
    CHECK(!is_lost_, "a step on a device that is lost");
    StepResult result = runner_->Run(plan);
    ++steps_;
    while (steps_ == bad_steps_.hanging) pause();
    is_lost_ = steps_ == bad_steps_.losing;
    if (!is_lost_) return result;
    for (SequenceOutput& output : result.outputs) {  // whoever takes them is found out
      for (SampledToken& token : output.tokens) token.token ^= 1;
    }
    result.device_error = WithReason(Internal(__FILE__, ":", __LINE__,
                                              ": cudaEventSynchronize(done): an illegal memory access was "
                                              "encountered (cudaErrorIllegalAddress)"),
                                     "device_error");
    return result;
  }

 private:
  const std::unique_ptr<Executor> runner_;
  const BadSteps bad_steps_ = ReadBadSteps();
  uint64_t steps_ = 0;
  bool is_lost_ = false;
};

class FakeDeviceModel : public DeviceModel {
 public:
  static StatusOr<std::unique_ptr<DeviceModel>> Load(const DeviceLoadOptions& options) {
    CHECK(options.shard == nullptr, "ranks on fake devices are FakeDevice's");
    RETURN_IF_ERROR(Annotate(CheckDeviceModel(*options.config), "CUDA"));
    if (options.compute != "auto")
      return WithReason(Unimplemented("compute ", options.compute), "unsupported_device");
    ASSIGN_OR_RETURN(const OpTable* ops, FindOps("reference"));
    std::unique_ptr<FakeDeviceModel> model(new FakeDeviceModel(*ops));
    // Borrows the weights for longer than devices may; the worker keeps them mapped as long as its engine.
    ASSIGN_OR_RETURN(model->transformer_,
                     Transformer::Load(*options.config, *options.weights, *ops, model->pool_,
                                       {.compute = ComputeType::kF32, .is_cancelled = options.is_cancelled}));
    model->parameters_ = model->transformer_->model_parameters();
    model->weight_bytes_ = model->transformer_->weight_bytes();
    return std::unique_ptr<DeviceModel>(std::move(model));
  }

  std::string name() const override { return "cuda Fake without hardware"; }
  uint64_t parameters() const override { return parameters_; }
  uint64_t weight_bytes() const override { return weight_bytes_; }
  DeviceLoadTimes load_times() const override { return {}; }
  Status Connect(Communicator&, const DeviceLimits&) override { return Unimplemented("no ranks here"); }
  StatusOr<uint64_t> FreeBytes() const override { return FreeMemoryBytes(); }
  uint64_t StepBytes(const DeviceLimits&) const override { return 0; }

  StatusOr<std::unique_ptr<Executor>> MakeExecutor(const KvShape& shape, const DeviceLimits&) override {
    CHECK(transformer_ != nullptr, "a second executor");
    ASSIGN_OR_RETURN(auto runner, ModelRunner::Create(pool_, std::move(transformer_), ops_, shape));
    return std::unique_ptr<Executor>(std::make_unique<FakeDeviceRunner>(std::move(runner)));
  }

 private:
  explicit FakeDeviceModel(const OpTable& ops) : ops_(ops) {}

  const OpTable& ops_;
  ThreadPool pool_{1};
  std::unique_ptr<Transformer> transformer_;  // until there is an executor, which has it then
  uint64_t parameters_ = 0, weight_bytes_ = 0;
};

Status Probe() {
  if (Behaviour() != "absent") return {};
  return WithReason(Unavailable("no CUDA device here"), "no_device");
}

StatusOr<uint32_t> Open(const DeviceChoice&) { return 0; }

}  // namespace
}  // namespace terrace

extern "C" __attribute__((visibility("default"))) const terrace::DeviceBackend* terrace_device_backend() {
  static const terrace::DeviceBackend kBackend{
      .probe = terrace::Probe, .open = terrace::Open, .load = terrace::FakeDeviceModel::Load};
  return &kBackend;
}

extern "C" __attribute__((visibility("default"))) const char* terrace_device_abi() {
  static const std::string kAbi =
      (terrace::Behaviour() == "another_version" ? "0.0.1 of " : "") + terrace::DeviceAbi();
  return kAbi.c_str();
}
