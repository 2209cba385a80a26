#include "worker/server/watch_hub.h"

#include <chrono>
#include <utility>

#include "base/grpc_status.h"

namespace terrace {
namespace {

constexpr std::chrono::milliseconds kPeriod(250);

}  // namespace

// All state is guarded by the hub's mutex.
class WatchHub::Call : public grpc::ServerWriteReactor<v1::WorkerUpdate> {
 public:
  explicit Call(WatchHub& hub) : hub_(hub) {}

  void SendLocked() {
    if (is_ending_) return;
    is_stale_ = is_writing_;
    if (is_writing_) return;
    update_ = hub_.snapshot_(position_);
    update_.set_sequence(next_sequence_++);
    is_writing_ = true;
    StartWrite(&update_);
  }

  void EndLocked(grpc::Status status) {
    if (!std::exchange(is_ending_, true)) end_ = std::move(status);
    FinishLocked();
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(hub_.mutex_);
    is_writing_ = false;
    if (!ok) EndLocked(grpc::Status::CANCELLED);
    if (is_ending_) return FinishLocked();
    if (is_stale_) SendLocked();
  }
  void OnCancel() override {
    std::lock_guard lock(hub_.mutex_);
    EndLocked(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    {
      std::lock_guard lock(hub_.mutex_);
      hub_.calls_.erase(this);
    }
    delete this;
  }

 private:
  void FinishLocked() {  // once, and not while a write is under way
    if (is_ending_ && !is_writing_ && !std::exchange(is_finished_, true)) Finish(end_);
  }

  WatchHub& hub_;
  v1::WorkerUpdate update_;  // being written
  uint64_t next_sequence_ = 0;
  std::optional<uint64_t> position_;
  bool is_writing_ = false, is_stale_ = false, is_ending_ = false, is_finished_ = false;
  grpc::Status end_;
};

WatchHub::WatchHub(Snapshot snapshot) : snapshot_(std::move(snapshot)) {
  std::lock_guard lock(mutex_);
  ArmLocked();
}

WatchHub::~WatchHub() {
  Stop();
  CHECK(calls_.empty(), calls_.size(), " Watch calls outlive their hub");
}

grpc::ServerWriteReactor<v1::WorkerUpdate>* WatchHub::Watch() {
  auto* call = new Call(*this);  // deletes itself in OnDone
  std::lock_guard lock(mutex_);
  calls_.insert(call);
  if (has_stopped_) {
    call->EndLocked(ToGrpcStatus(Unavailable("the worker is stopping")));
  } else {
    call->SendLocked();
  }
  return call;
}

void WatchHub::Notify() {
  std::lock_guard lock(mutex_);
  NotifyLocked();
}

void WatchHub::NotifyLocked() {
  for (Call* call : calls_) call->SendLocked();
}

void WatchHub::Stop() {
  std::unique_lock lock(mutex_);
  if (!std::exchange(has_stopped_, true)) {
    for (Call* call : calls_) call->EndLocked(ToGrpcStatus(Unavailable("the worker is stopping")));
    alarm_->Cancel();
  }
  disarmed_.wait(lock, [this] { return !is_armed_; });
}

void WatchHub::ArmLocked() {
  // A new one each time: an alarm must not be set again from its own callback.
  alarm_ = std::make_unique<grpc::Alarm>();
  is_armed_ = true;
  alarm_->Set(std::chrono::system_clock::now() + kPeriod, [this](bool) { Tick(); });
}

void WatchHub::Tick() {
  std::lock_guard lock(mutex_);
  is_armed_ = false;
  if (has_stopped_) {
    disarmed_.notify_all();
    return;
  }
  NotifyLocked();
  ArmLocked();
}

}  // namespace terrace
