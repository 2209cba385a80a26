#include "worker/server/serve_hub.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <iterator>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/grpc_status.h"
#include "worker/server/proto_convert.h"

namespace terrace {
namespace {

// Of a message, about: what a step of a large batch makes, and little enough to be sent in no time.
constexpr size_t kMessageLogprobs = 4096;
constexpr double kMostSeconds = 1e9;  // a longer timeout is none

Status Draining() { return WithReason(Unavailable("the worker is draining; no new calls"), "draining"); }
Status CallerGone() { return Cancelled("the caller is gone"); }

std::optional<MonoTime> DeadlineOf(const v1::ServeStart& start) {
  if (!start.has_timeout_seconds() || !(start.timeout_seconds() < kMostSeconds)) return std::nullopt;
  const std::chrono::duration<double> timeout(std::max(start.timeout_seconds(), 0.0));
  return RealClock().Now() + std::chrono::duration_cast<Duration>(timeout);
}

void ToProto(const Status& error, v1::ServeError& out) {
  out.set_code(static_cast<int32_t>(error.code()));  // Abseil's codes are gRPC's
  out.set_message(Message(error));
  out.set_reason(Reason(error));
}

}  // namespace

class ServeHub::Stream : public grpc::ServerBidiReactor<v1::ServeCommands, v1::ServeEvents>,
                         public std::enable_shared_from_this<ServeHub::Stream> {
 public:
  Stream(ServeHub& hub, grpc::CallbackServerContext& context) : hub_(hub), context_(context) {}

  void Open() { StartRead(&commands_); }
  void Stop();
  void End(const Status& why);  // at once, with all its calls. Idempotent
  // `call` has something to send, from the next Flush on.
  void List(std::shared_ptr<Call> call);
  void Flush();

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override { End(CallerGone()); }
  void OnDone() override { hub_.Leave(*this); }

 private:
  Status Obey(const v1::ServeCommand& command);
  Status StartCall(uint64_t id, const v1::ServeStart& start);
  std::shared_ptr<Call> Find(uint64_t id);
  void Cancel(uint64_t id);
  void Continue();
  bool BeginWrite();
  std::optional<Status> BeginEnd();
  std::shared_ptr<Call> NextReady();
  void Fill();
  size_t FillFrom(Call& call, size_t room);

  ServeHub& hub_;
  grpc::CallbackServerContext& context_;  // gRPC's, until OnDone
  v1::ServeCommands commands_;            // being read
  uint64_t last_call_ = 0;                // of those that were started; the reading thread's
  bool owes_flush_ = false;               // for what no step gave; the reading thread's
  v1::ServeEvents events_;                // of who has set is_writing_, until they are written
  std::mutex mutex_;
  // All GUARDED_BY(mutex_):
  std::unordered_map<uint64_t, std::shared_ptr<Call>> calls_;  // that have not ended, by id
  std::vector<std::shared_ptr<Call>> listed_;                  // that have something to send
  std::deque<std::shared_ptr<Call>> ready_;                    // of those, since before the last Flush
  bool is_writing_ = false, is_finished_ = false;
  bool is_half_closed_ = false, is_stopping_ = false;
  std::optional<Status> end_;
};

class ServeHub::Call : public ExecuteCall {
 public:
  Call(const Options& options, const ExecuteHost& host, const v1::ServeStart& start,
       std::shared_ptr<Stream> in, uint64_t number)
      : ExecuteCall(options, host, start.traceparent()),
        stream(std::move(in)),
        id(number),
        credit(start.credit()) {}

  const std::shared_ptr<Stream> stream;
  const uint64_t id;
  std::atomic<int64_t> credit;  // log-probabilities; below 0 by one event at most
  std::atomic<bool> is_listed = false;

 private:
  void OnReady() override { stream->List(std::static_pointer_cast<Call>(shared_from_this())); }
};

void ServeHub::Stream::List(std::shared_ptr<Call> call) {
  if (call->is_listed.exchange(true)) return;
  std::lock_guard lock(mutex_);
  if (!end_.has_value()) listed_.push_back(std::move(call));
}

void ServeHub::Stream::Flush() {
  {
    std::lock_guard lock(mutex_);
    ready_.insert(ready_.end(), std::make_move_iterator(listed_.begin()),
                  std::make_move_iterator(listed_.end()));
    listed_.clear();
  }
  Continue();
}

void ServeHub::Stream::OnReadDone(bool ok) {
  if (ok) {
    for (const v1::ServeCommand& command : commands_.commands()) {
      if (const Status obeyed = Obey(command); !obeyed.ok()) return End(obeyed);
    }
  } else {
    std::lock_guard lock(mutex_);
    is_half_closed_ = true;
  }
  std::exchange(owes_flush_, false) ? Flush() : Continue();
  std::lock_guard lock(mutex_);
  if (ok && !end_.has_value() && !is_finished_) StartRead(&commands_);
}

Status ServeHub::Stream::Obey(const v1::ServeCommand& command) {
  switch (command.command_case()) {
    case v1::ServeCommand::kStart:
      return StartCall(command.call(), command.start());
    case v1::ServeCommand::kCredit:
      if (const auto call = Find(command.call()); call != nullptr) {
        call->credit += command.credit();
        List(call);
        owes_flush_ = true;
      }
      return {};
    case v1::ServeCommand::kCancel:
      Cancel(command.call());
      return {};
    case v1::ServeCommand::COMMAND_NOT_SET:
      break;
  }
  return InvalidArgument("a command to call ", command.call(), " that is none of this version's");
}

Status ServeHub::Stream::StartCall(uint64_t id, const v1::ServeStart& start) {
  if (id <= last_call_)
    return InvalidArgument("call ", id, " comes after call ", last_call_, ": numbers have to rise");
  last_call_ = id;
  const size_t most = hub_.options_.max_calls;
  const auto call = std::make_shared<Call>(hub_.options_.execute, hub_.host_, start, shared_from_this(), id);
  bool has_room = false;
  {
    std::lock_guard lock(mutex_);
    if (end_.has_value()) return {};
    // Those that are refused or cancelled stay until there is a message that passes them.
    if (calls_.size() + ready_.size() + listed_.size() > 2 * most)
      return ResourceExhausted("the stream's caller starts calls and does not read how they end");
    has_room = calls_.size() < most;
    calls_.emplace(id, call);  // also one that is refused, until its caller hears of it
  }
  v1::ExecuteRequest request;
  bool has_begun = false;
  if (!has_room) {
    call->Refuse(
        WithReason(ResourceExhausted("the stream has ", most, " calls, and no more at once"), "overloaded"));
  } else if (!request.ParseFromString(start.request())) {
    call->Refuse(WithReason(InvalidArgument("the request is no ExecuteRequest"), "invalid_value"));
  } else {
    has_begun = call->Begin(request, DeadlineOf(start));
  }
  if (!has_begun) owes_flush_ = true;
  return {};
}

// Null: it has ended.
std::shared_ptr<ServeHub::Call> ServeHub::Stream::Find(uint64_t id) {
  std::lock_guard lock(mutex_);
  const auto found = calls_.find(id);
  return found == calls_.end() ? nullptr : found->second;
}

void ServeHub::Stream::Cancel(uint64_t id) {
  const auto call = Find(id);
  if (call == nullptr) return;
  {
    std::lock_guard lock(mutex_);
    calls_.erase(id);
  }
  call->Close();
  hub_.host_.wake();  // it may have nothing to do but what is paused
}

void ServeHub::Stream::Stop() {
  {
    std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  Continue();
}

void ServeHub::Stream::End(const Status& why) {
  std::unordered_map<uint64_t, std::shared_ptr<Call>> ended;
  {
    std::lock_guard lock(mutex_);
    if (!end_.has_value()) end_ = why;
    ended.swap(calls_);
    listed_.clear();
    ready_.clear();
  }
  for (const auto& [id, call] : ended) call->Close();
  hub_.host_.wake();
  Continue();
}

// Writes what is ready, or ends the stream when that is due.
void ServeHub::Stream::Continue() {
  while (BeginWrite()) {
    Fill();
    if (!events_.events().empty()) return StartWrite(&events_);
    std::lock_guard lock(mutex_);  // what was ready was cancelled, or lacks credit
    is_writing_ = false;
  }
  if (const std::optional<Status> end = BeginEnd(); end.has_value()) {
    SetReasonTrailer(context_, *end);
    Finish(ToGrpcStatus(*end));
  }
}

// Whether it is the caller's to write now.
bool ServeHub::Stream::BeginWrite() {
  std::lock_guard lock(mutex_);
  if (is_writing_ || is_finished_ || end_.has_value() || ready_.empty()) return false;
  is_writing_ = true;
  return true;
}

// What the stream ends with, when it is the caller's to end it now.
std::optional<Status> ServeHub::Stream::BeginEnd() {
  std::lock_guard lock(mutex_);
  if (is_writing_ || is_finished_) return std::nullopt;
  if (!end_.has_value()) {
    if (!calls_.empty() || (!is_half_closed_ && !is_stopping_)) return std::nullopt;
    end_ = is_stopping_ ? Draining() : Status();
  }
  is_finished_ = true;
  listed_.clear();  // these hold the stream
  ready_.clear();
  return end_;
}

std::shared_ptr<ServeHub::Call> ServeHub::Stream::NextReady() {
  std::lock_guard lock(mutex_);
  if (ready_.empty()) return nullptr;
  std::shared_ptr<Call> next = std::move(ready_.front());
  ready_.pop_front();
  return next;
}

// The next message.
void ServeHub::Stream::Fill() {
  events_.Clear();
  size_t room = kMessageLogprobs;
  while (room > 0) {
    const std::shared_ptr<Call> call = NextReady();
    if (call == nullptr) return;
    call->is_listed = false;  // what comes from here on lists it anew
    if (!call->is_closed()) room = FillFrom(*call, room);
    if (room > 0 || call->is_listed.exchange(true)) continue;
    std::lock_guard lock(mutex_);
    if (!end_.has_value()) ready_.push_back(call);  // it may have more
  }
}

// How much room is left.
size_t ServeHub::Stream::FillFrom(Call& call, size_t room) {
  while (room > 0) {
    std::optional<ExecuteCall::Waiting> next = call.Take(/*has_credit=*/call.credit > 0);
    if (!next.has_value()) break;
    call.credit -= static_cast<int64_t>(next->logprobs);
    room -= std::min(room, 1 + next->logprobs);
    v1::ServeEvent& event = *events_.add_events();
    event.set_call(call.id);
    *event.mutable_event() = std::move(next->event);
  }
  const std::optional<Status> end = call.TakeEnd();
  if (!end.has_value()) return room;
  if (!end->ok()) {
    v1::ServeEvent& event = *events_.add_events();
    event.set_call(call.id);
    ToProto(*end, *event.mutable_error());
  }
  std::lock_guard lock(mutex_);
  calls_.erase(call.id);
  return room;
}

void ServeHub::Stream::OnWriteDone(bool ok) {
  {
    std::lock_guard lock(mutex_);
    is_writing_ = false;
  }
  if (!ok) return End(CallerGone());
  Continue();
}

grpc::ServerBidiReactor<v1::ServeCommands, v1::ServeEvents>* ServeHub::Serve(
    grpc::CallbackServerContext& context) {
  const auto stream = std::make_shared<Stream>(*this, context);
  bool has_stopped = false;
  {
    std::lock_guard lock(mutex_);
    streams_.push_back(stream);
    has_stopped = has_stopped_;
  }
  stream->Open();
  if (has_stopped) stream->Stop();
  return stream.get();
}

void ServeHub::Flush() {
  std::vector<std::shared_ptr<Stream>> streams;
  {
    std::lock_guard lock(mutex_);
    streams = streams_;
  }
  for (const auto& stream : streams) stream->Flush();
}

void ServeHub::Stop() {
  std::vector<std::shared_ptr<Stream>> streams;
  {
    std::lock_guard lock(mutex_);
    has_stopped_ = true;
    streams = streams_;
  }
  for (const auto& stream : streams) stream->Stop();
}

void ServeHub::Leave(const Stream& stream) {
  std::shared_ptr<Stream> last;  // goes without the lock
  std::lock_guard lock(mutex_);
  const auto found = std::ranges::find_if(streams_, [&](const auto& each) { return each.get() == &stream; });
  last = std::move(*found);
  streams_.erase(found);
}

}  // namespace terrace
