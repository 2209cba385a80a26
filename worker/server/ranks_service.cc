#include "worker/server/ranks_service.h"

#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/grpc_status.h"
#include "base/log.h"

namespace terrace {
namespace {

constexpr Duration kCancelPoll = std::chrono::milliseconds(50);

template <typename... Text>
Status Differs(const Text&... text) {
  return WithReason(FailedPrecondition(text...), "ranks_differ");
}

// Whether who says `hello` can be a rank of the group of `own`.
Status CheckHello(const v1::RankHello& hello, const v1::RankHello& own) {
  const auto differs = [&hello](std::string_view what, const auto& theirs, const auto& ours) {
    return Differs(what, " is ", theirs, " at rank ", hello.rank(), ", ", ours, " at rank 0");
  };
  if (hello.protocol() != own.protocol())
    return differs("the protocol of ranks", hello.protocol(), own.protocol());
  if (hello.version() != own.version()) return differs("the version", hello.version(), own.version());
  if (hello.ranks() != own.ranks()) return differs("group.ranks", hello.ranks(), own.ranks());
  if (hello.rank() == 0 || hello.rank() >= own.ranks())
    return Differs("group.rank is ", hello.rank(), ", of 1 to ", own.ranks() - 1, " that may join rank 0");
  if (hello.model_digest() != own.model_digest())
    return differs("the model's digest", hello.model_digest(), own.model_digest());
  if (hello.settings_size() != own.settings_size())
    return differs("the number of settings", hello.settings_size(), own.settings_size());
  for (int i = 0; i < own.settings_size(); ++i) {
    const v1::RankSetting &theirs = hello.settings(i), &ours = own.settings(i);
    if (theirs.name() != ours.name()) return differs("a setting", theirs.name(), ours.name());
    if (theirs.value() != ours.value()) return differs(ours.name(), theirs.value(), ours.value());
  }
  return Status();
}

}  // namespace

// One rank. Its state is guarded by the service's mutex; deletes itself when gRPC is done with it.
class RanksService::Stream : public grpc::ServerBidiReactor<v1::JoinRequest, v1::JoinResponse> {
 public:
  Stream(RanksService& service, grpc::CallbackServerContext& context) : service_(service), context_(context) {
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    const bool is_first = !has_said_hello_;  // this thread's: reads are one after the other
    Status taken;
    {
      std::lock_guard lock(service_.mutex_);
      taken = ok ? Take() : Cancelled("it is gone");
      if (!taken.ok()) {
        End(taken);
      } else {
        StartRead(&request_);
      }
    }
    if (!is_first || !ok) return;
    if (taken.ok()) {
      Log(LogLevel::kInfo, "worker_rank_joined", {{"rank", rank}, {"peer", context_.peer()}});
    } else {
      Log(LogLevel::kWarn, "worker_rank_refused", {{"peer", context_.peer()}, {"error", Message(taken)}});
    }
  }
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(service_.mutex_);
    is_writing_ = false;
    service_.changed_.notify_all();
    if (!ok) End(Cancelled("it is gone"));
    if (end_.has_value()) FinishOnce();
  }
  void OnCancel() override {
    std::lock_guard lock(service_.mutex_);
    End(Cancelled("it is gone"));
  }
  void OnDone() override { delete this; }

  // All with the service's mutex held.
  // gRPC may say later than it gave an answer to the rank that it has done so.
  bool HasTold() const { return told.has_value() && !is_writing_; }
  void Answer(const std::vector<std::string>& all) {
    told.reset();
    response_.Clear();
    for (const std::string& each : all) response_.add_told(each);
    is_writing_ = true;
    StartWrite(&response_);
  }
  void End(const Status& why) {
    if (end_.has_value()) return;
    end_ = why;
    service_.Leave(*this, why);
    FinishOnce();
  }

  uint32_t rank = 0;                // once it was let in
  std::optional<std::string> told;  // in this round

 private:
  Status Take() {
    if (end_.has_value()) return *end_;
    if (!std::exchange(has_said_hello_, true)) RETURN_IF_ERROR(service_.Enter(*this, request_.hello()));
    if (told.has_value()) return InvalidArgument("rank ", rank, " has told twice in a round");
    told = request_.told();
    service_.changed_.notify_all();
    return Status();
  }
  void FinishOnce() {
    if (is_writing_ || std::exchange(is_finished_, true)) return;
    SetReasonTrailer(context_, *end_);
    Finish(ToGrpcStatus(*end_));
  }

  RanksService& service_;
  grpc::CallbackServerContext& context_;  // gRPC's, until OnDone
  v1::JoinRequest request_;               // being read
  v1::JoinResponse response_;             // being written
  bool has_said_hello_ = false, is_writing_ = false, is_finished_ = false;
  std::optional<Status> end_;
};

RanksService::RanksService(v1::RankHello own) : own_(std::move(own)), ranks_(own_.ranks()) {}

grpc::ServerBidiReactor<v1::JoinRequest, v1::JoinResponse>* RanksService::Join(
    grpc::CallbackServerContext* context) {
  return new Stream(*this, *context);  // deletes itself in OnDone
}

Status RanksService::Enter(Stream& stream, const v1::RankHello& hello) {
  RETURN_IF_ERROR(CheckHello(hello, own_));
  if (!lost_.ok()) return lost_;
  Stream*& place = ranks_[hello.rank()];
  if (place != nullptr) {
    return WithReason(Unavailable("rank ", hello.rank(), " of the group is another process"), "rank_taken");
  }
  stream.rank = hello.rank();
  place = &stream;
  return Status();
}

void RanksService::Leave(const Stream& stream, const Status& why) {
  if (stream.rank == 0 || ranks_[stream.rank] != &stream) return;
  ranks_[stream.rank] = nullptr;
  if (rounds_ > 0 && lost_.ok()) {
    lost_ = Unavailable("rank ", stream.rank, " has left the group: ", Message(why));
  } else if (lost_.ok()) {  // it may come back, and is waited for
    Log(LogLevel::kWarn, "worker_rank_left", {{"rank", stream.rank}, {"error", Message(why)}});
  }
  changed_.notify_all();
}

Status RanksService::FindLost() {
  std::lock_guard lock(mutex_);
  return lost_;
}

bool RanksService::HaveAllTold() const {
  for (size_t rank = 1; rank < ranks_.size(); ++rank) {
    if (ranks_[rank] == nullptr || !ranks_[rank]->HasTold()) return false;
  }
  return true;
}

StatusOr<std::vector<std::string>> RanksService::Tell(const std::string& mine,
                                                      const std::function<bool()>& is_cancelled) {
  std::unique_lock lock(mutex_);
  while (lost_.ok() && !HaveAllTold()) {
    if (is_cancelled && is_cancelled()) return Cancelled("interrupted");
    changed_.wait_for(lock, kCancelPoll);
  }
  RETURN_IF_ERROR(lost_);
  std::vector<std::string> all = {mine};
  for (size_t rank = 1; rank < ranks_.size(); ++rank) all.push_back(*ranks_[rank]->told);
  ++rounds_;
  for (size_t rank = 1; rank < ranks_.size(); ++rank) ranks_[rank]->Answer(all);
  return all;
}

void RanksService::Stop() {
  std::lock_guard lock(mutex_);
  if (lost_.ok()) lost_ = Unavailable("the leader has stopped");
  for (Stream* const stream : std::vector(ranks_)) {
    if (stream != nullptr) stream->End(lost_);
  }
}

}  // namespace terrace
