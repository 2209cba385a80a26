#include "worker/server/join_call.h"

#include <utility>

#include "base/clock.h"
#include "base/grpc_status.h"

namespace terrace {
namespace {

constexpr Duration kCancelPoll = std::chrono::milliseconds(50);

}  // namespace

JoinCall::JoinCall(const std::shared_ptr<grpc::Channel>& channel, v1::RankHello hello)
    : stub_(v1::Ranks::NewStub(channel)) {
  *request_.mutable_hello() = std::move(hello);
  stub_->async()->Join(&context_, this);
  StartRead(&response_);
  StartCall();
}

JoinCall::~JoinCall() {
  context_.TryCancel();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return end_.has_value(); });
}

StatusOr<std::vector<std::string>> JoinCall::Tell(const std::string& mine,
                                                  const std::function<bool()>& is_cancelled) {
  std::unique_lock lock(mutex_);
  bool is_told = false;
  while (!end_.has_value()) {
    if (answer_.has_value()) return *std::exchange(answer_, std::nullopt);
    if (!is_told && !is_writing_ && !is_over_) {
      request_.set_told(mine);
      StartWrite(&request_);
      is_told = is_writing_ = true;
    }
    if (is_cancelled && is_cancelled()) return Cancelled("interrupted");
    changed_.wait_for(lock, kCancelPoll);
  }
  return *end_;
}

Status JoinCall::FindEnd() {
  std::lock_guard lock(mutex_);
  return end_.value_or(Status());
}

void JoinCall::OnReadDone(bool ok) {
  std::lock_guard lock(mutex_);
  if (!ok) {
    is_over_ = true;
    return;
  }
  answer_.emplace(response_.told().begin(), response_.told().end());
  StartRead(&response_);
  changed_.notify_all();
}

void JoinCall::OnWriteDone(bool) {  // a read fails too where it failed
  std::lock_guard lock(mutex_);
  is_writing_ = false;
  request_.clear_hello();
  changed_.notify_all();
}

void JoinCall::OnDone(const grpc::Status& status) {
  Status end = FromGrpcStatus(status, context_);
  if (end.ok()) end = Unavailable("the leader has ended the group");
  std::lock_guard lock(mutex_);
  end_ = std::move(end);
  changed_.notify_all();  // under the lock: whoever waits destroys this
}

}  // namespace terrace
