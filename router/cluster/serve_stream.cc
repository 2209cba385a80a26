#include "router/cluster/serve_stream.h"

#include <algorithm>
#include <atomic>
#include <span>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/grpc_status.h"
#include "router/cluster/ejection.h"

namespace terrace {
namespace {

// Log-probabilities that a worker may send of a call before its reader has taken any: those of a second or
// two. Half of it is given back at a time.
constexpr uint32_t kWindow = 1024;
constexpr size_t kBatchBytes = size_t{64} << 10;  // of commands in a message, but for a long one alone
constexpr size_t kMostRequestBytes = 15'000'000;  // of one: workers take messages of 16 MiB
constexpr size_t kCallsPerThread = 16, kMostThreads = 16;  // that tell what is to be told at once
constexpr auto kEndPatience = std::chrono::seconds(1);     // from the last read to the stream's end

google::protobuf::ArenaOptions ArenaIn(std::span<char> block) {
  google::protobuf::ArenaOptions options;
  options.initial_block = block.data();
  options.initial_block_size = block.size();
  return options;
}

v1::ServeCommand StartCommand(const ExecuteSpec& spec) {
  v1::ServeCommand command;
  v1::ServeStart& start = *command.mutable_start();
  start.set_request(ToProto(spec).SerializeAsString());
  start.set_credit(kWindow);
  start.set_timeout_seconds(std::max(0.0, Seconds(spec.deadline - RealClock().Now())));
  start.set_traceparent(spec.traceparent);
  start.set_tracestate(spec.tracestate);
  return command;
}

Status FromProto(const v1::ServeError& error) {
  if (error.code() == 0) return ProtocolError("the call ended without its last event");
  return WithReason(status_internal::MakeStatus(static_cast<StatusCode>(error.code()), error.message()),
                    error.reason());
}

// `error` of a call that never came to its worker.
Status Unreached(const Status& error) {
  const bool has_no_cause = error.code() == StatusCode::kUnavailable && Reason(error).empty();
  return has_no_cause ? WithReason(error, kUnreachedReason) : error;
}

// Whether there was a connection: then gRPC has its address for the call's peer, before that what the channel
// was made with.
bool WasConnected(const grpc::ClientContext& context) {
  const std::string peer = context.peer();
  return peer.starts_with("ipv4:") || peer.starts_with("ipv6:");
}

}  // namespace

class ServeStream::Call : public CallHandle, public std::enable_shared_from_this<ServeStream::Call> {
 public:
  Call(std::shared_ptr<ServeStream> on, const ExecuteSpec& spec, std::shared_ptr<ExecuteEvents> reader)
      : stream(std::move(on)), deadline(spec.deadline), order(spec), events(std::move(reader)) {}

  void Cancel() override { stream->Cancel(shared_from_this()); }
  void Resume() override { stream->Resume(shared_from_this()); }

  const std::shared_ptr<ServeStream> stream;
  const MonoTime deadline;

  // Of who has set is_busy; `events` until the end.
  ExecuteOrder order;
  std::shared_ptr<ExecuteEvents> events;
  size_t consumed = 0;  // log-probabilities that credit was not given back for

  // All GUARDED_BY(the stream's mutex_):
  uint64_t id = 0;
  std::list<v1::ServeEvent> inbox = {};  // mostly empty: what its reader had no room for
  int64_t credit = kWindow;              // that the worker has left, or more when it knows of all
  std::optional<Status> ended = {};      // here, whatever the worker still says
  std::optional<Status> lost = {};       // with the stream, behind what has come
  bool is_busy = false;                  // somebody tells its events; to the end once it is over
  bool is_sent = false;                  // on its way to the worker
};

std::shared_ptr<ServeStream> ServeStream::Open(v1::Worker::Stub& stub) {
  const std::shared_ptr<ServeStream> stream(new ServeStream());
  {
    std::lock_guard lock(stream->mutex_);
    stream->self_ = stream;
  }
  stub.async()->Serve(&stream->context_, stream.get());
  stream->AddHold();
  stream->StartRead(stream->message_);
  stream->StartCall();
  return stream;
}

ServeStream::ServeStream() : arena_(ArenaIn(block_)) { NewMessage(); }

void ServeStream::NewMessage() {
  arena_.Reset();
  message_ = google::protobuf::Arena::CreateMessage<v1::ServeEvents>(&arena_);
}

std::shared_ptr<CallHandle> ServeStream::Start(const ExecuteSpec& spec,
                                               std::shared_ptr<ExecuteEvents> events) {
  const auto call = std::make_shared<Call>(shared_from_this(), spec, std::move(events));
  v1::ServeCommand command = StartCommand(spec);
  const size_t bytes = command.start().request().size();
  {
    std::lock_guard lock(mutex_);
    call->id = ++last_id_;
    if (is_broken_) {
      call->ended = Unreached(Unavailable("the stream to the worker broke before the call"));
      DeliverSoon(call);
    } else if (bytes > kMostRequestBytes) {
      call->ended = WithReason(
          InvalidArgument("the request takes ", bytes, " bytes, limit ", kMostRequestBytes), "invalid_value");
      DeliverSoon(call);
    } else {
      calls_.emplace(call->id, call);
      deadlines_.emplace(call->deadline, call->id);
      SetAlarm();
      command.set_call(call->id);
      Send(std::move(command));
    }
  }
  Write();
  return call;
}

bool ServeStream::is_broken() const {
  std::lock_guard lock(mutex_);
  return is_broken_;
}

void ServeStream::Close() {
  {
    std::lock_guard lock(mutex_);
    is_closing_ = true;
  }
  Write();
}

void ServeStream::EndCalls(const Status& why) {
  {
    std::lock_guard lock(mutex_);
    is_broken_ = true;
    outgoing_.clear();
    std::vector<CallPtr> calls;
    for (const auto& [id, call] : calls_) calls.push_back(call);
    for (const CallPtr& call : calls) {
      EndNow(*call, why);
      DeliverSoon(call);
    }
  }
  context_.TryCancel();
}

void ServeStream::Cancel(const CallPtr& call) {
  {
    std::lock_guard lock(mutex_);
    if (!EndNow(*call, Cancelled("the call was cancelled"))) return;
    DeliverSoon(call);
  }
  Write();
}

void ServeStream::Resume(const CallPtr& call) {
  std::lock_guard lock(mutex_);
  if (!call->inbox.empty() || call->lost.has_value()) DeliverSoon(call);
}

// The call is over with `why`, whatever else has come or comes. False: it was over already.
bool ServeStream::EndNow(Call& call, const Status& why) {
  if (calls_.erase(call.id) == 0) return false;
  deadlines_.erase({call.deadline, call.id});
  call.ended = why;
  call.inbox.clear();
  if (!call.is_sent) return true;  // and its start will not be
  v1::ServeCommand command;
  command.set_call(call.id);
  command.set_cancel(true);
  Send(std::move(command));
  return true;
}

// By another thread, which holds no lock of the caller's; or by who is at it.
void ServeStream::DeliverSoon(const CallPtr& call) {
  if (std::exchange(call->is_busy, true)) return;
  soon_.push_back(call);
  if (soon_alarm_ != nullptr) return;
  soon_alarm_ = std::make_unique<grpc::Alarm>();
  // In the past, as a time that is just now waits for the next tick of gRPC's timers.
  const auto at_once = std::chrono::system_clock::now() - std::chrono::milliseconds(10);
  soon_alarm_->Set(at_once, [self = shared_from_this()](bool) { self->OnSoon(); });
}

// Of a broken stream these are all its calls, and each may go on elsewhere, with its whole prompt: many are
// told by several threads. More alarms would not do: gRPC has what is due at once run by one thread.
void ServeStream::OnSoon() {
  std::unique_ptr<grpc::Alarm> done;  // goes without the lock
  std::vector<CallPtr> calls;
  {
    std::lock_guard lock(mutex_);
    done = std::move(soon_alarm_);
    calls.swap(soon_);
  }
  {
    std::atomic<size_t> next = 0;
    const auto deliver = [&] {
      for (size_t i = next++; i < calls.size(); i = next++) Deliver(calls[i]);
    };
    std::vector<std::jthread> helpers;
    while (helpers.size() < std::min(calls.size() / kCallsPerThread, kMostThreads))
      helpers.emplace_back(deliver);
    deliver();
  }
  Write();
}

// For the first deadline there is.
void ServeStream::SetAlarm() {
  if (deadlines_.empty()) return;
  const MonoTime first = deadlines_.begin()->first;
  if (deadline_alarm_ != nullptr && alarm_at_ <= first) return;  // it sets the next one
  alarm_at_ = first;
  deadline_alarm_ = std::make_unique<grpc::Alarm>();
  deadline_alarm_->Set(WallTimeIn(first - RealClock().Now()), [weak = weak_from_this()](bool is_due) {
    const auto self = is_due ? weak.lock() : nullptr;
    if (self != nullptr) self->OnDeadline();
  });
}

void ServeStream::OnDeadline() {
  std::unique_ptr<grpc::Alarm> done;  // goes without the lock
  {
    std::lock_guard lock(mutex_);
    done = std::move(deadline_alarm_);
    const MonoTime now = RealClock().Now();
    while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
      const CallPtr call = calls_.at(deadlines_.begin()->second);
      EndNow(*call, DeadlineExceeded("the call's deadline passed"));
      DeliverSoon(call);
    }
    SetAlarm();
  }
  Write();
}

void ServeStream::OnReadDone(bool ok) {
  if (ok) {
    for (const v1::ServeEvent& event : message_->events()) Take(event);
    Write();
    NewMessage();  // the next one may be long in coming
    return StartRead(message_);
  }
  bool has_no_writer = false;
  {
    std::lock_guard lock(mutex_);
    is_broken_ = true;
    has_no_writer = !is_writing_ && TakeHold();
    CancelUnlessItEnds();
  }
  if (has_no_writer) RemoveHold();
}

// After the last read. The end mostly follows at once, with a status; but not behind a message that could not
// be parsed, of which the worker knows nothing.
void ServeStream::CancelUnlessItEnds() {
  end_alarm_ = std::make_unique<grpc::Alarm>();
  end_alarm_->Set(std::chrono::system_clock::now() + kEndPatience, [weak = weak_from_this()](bool is_due) {
    const auto self = is_due ? weak.lock() : nullptr;
    if (self != nullptr) self->context_.TryCancel();
  });
}

// Tells the event, if its call's reader has room; but ends, after which there may be much to do, are left to
// another thread, as this one reads for all calls.
void ServeStream::Take(const v1::ServeEvent& event) {
  const bool is_end = event.has_error() || event.event().has_finished();
  CallPtr call;
  {
    std::lock_guard lock(mutex_);
    const auto found = calls_.find(event.call());
    if (found == calls_.end()) return;  // it has ended here
    call = found->second;
    const auto logprobs = static_cast<int64_t>(CountLogprobs(event.event()));
    if (logprobs > 0 && call->credit <= 0) {
      EndNow(*call, ProtocolError("more than the call's credit"));
      return DeliverSoon(call);
    }
    call->credit -= logprobs;
    const bool is_full = call->events->is_full();
    if (is_end || is_full || call->is_busy || !call->inbox.empty()) {
      call->inbox.push_back(event);
      if (!is_full) DeliverSoon(call);
      return;
    }
    call->is_busy = true;
  }
  Tell(*call, event);  // what is wrong with it is in `ended` then
  std::lock_guard lock(mutex_);
  call->is_busy = false;
  if (call->ended.has_value()) DeliverSoon(call);
}

// Tells what there is for the call's reader, while that has room. By who has set is_busy.
void ServeStream::Deliver(const CallPtr& call) {
  std::optional<End> end;
  while (!end.has_value()) {
    std::list<v1::ServeEvent> next;
    {
      std::lock_guard lock(mutex_);
      if (call->ended.has_value()) {
        end = *call->ended;
      } else if (call->events->is_full() || (call->inbox.empty() && !call->lost.has_value())) {
        call->is_busy = false;
        return;
      } else if (call->inbox.empty()) {
        end = std::exchange(is_loss_told_, true) ? CountedAlready(*call->lost) : *call->lost;
      } else {
        next.splice(next.begin(), call->inbox, call->inbox.begin());
      }
    }
    if (!next.empty()) end = Tell(*call, next.front());
  }
  Finish(*call, *end);
}

// The call's end, when `event` was the last of it.
std::optional<ServeStream::End> ServeStream::Tell(Call& call, const v1::ServeEvent& event) {
  if (event.has_error()) return FromProto(event.error());
  std::optional<End> end = call.order.Take(event.event(), *call.events);
  if (!end.has_value()) {
    GiveCredit(call, CountLogprobs(event.event()));
  } else if (!end->ok()) {  // what is wrong we say, and the worker would go on
    std::lock_guard lock(mutex_);
    EndNow(call, end->status());
  }
  return end;
}

void ServeStream::GiveCredit(Call& call, size_t logprobs) {
  call.consumed += logprobs;
  if (call.consumed < kWindow / 2) return;
  v1::ServeCommand command;
  command.set_credit(static_cast<uint32_t>(std::exchange(call.consumed, 0)));
  std::lock_guard lock(mutex_);
  call.credit += command.credit();
  command.set_call(call.id);
  Send(std::move(command));
}

void ServeStream::Finish(Call& call, const End& end) {
  {
    std::lock_guard lock(mutex_);
    calls_.erase(call.id);
    deadlines_.erase({call.deadline, call.id});
    call.inbox.clear();
  }
  const std::shared_ptr<ExecuteEvents> events = std::move(call.events);
  events->OnDone(end);
}

void ServeStream::Send(v1::ServeCommand command) {
  if (!is_broken_) outgoing_.push_back(std::move(command));
}

// Writes what there is to be said, if nobody else is at it; or that there is no more.
void ServeStream::Write() {
  bool has_batch = false;
  {
    std::lock_guard lock(mutex_);
    if (is_writing_ || is_broken_ || !has_hold_) return;
    FillBatch();
    has_batch = is_writing_ = !batch_.commands().empty();
    if (!has_batch) {
      if (!is_closing_ || !calls_.empty()) return;
      TakeHold();
    }
  }
  if (has_batch) return StartWrite(&batch_);
  StartWritesDone();
  RemoveHold();
}

// Without the starts of calls that have ended before: numbers may have gaps.
void ServeStream::FillBatch() {
  batch_.Clear();
  for (size_t bytes = 0; !outgoing_.empty() && bytes < kBatchBytes; outgoing_.pop_front()) {
    v1::ServeCommand& next = outgoing_.front();
    if (next.has_start()) {
      const auto found = calls_.find(next.call());
      if (found == calls_.end()) continue;
      found->second->is_sent = true;
      bytes += next.start().request().size();
    }
    *batch_.add_commands() = std::move(next);
  }
}

void ServeStream::OnWriteDone(bool ok) {
  bool is_last = false;
  {
    std::lock_guard lock(mutex_);
    is_writing_ = false;
    if (!ok) is_broken_ = true;
    is_last = is_broken_ && TakeHold();
  }
  if (is_last) return RemoveHold();
  Write();
}

// Whether the caller has to remove the hold.
bool ServeStream::TakeHold() { return std::exchange(has_hold_, false); }

void ServeStream::OnDone(const grpc::Status& status) {
  std::shared_ptr<ServeStream> self;  // perhaps the last one: it goes without the lock
  Status error = FromGrpcStatus(status, context_);
  if (error.ok()) error = ProtocolError("the stream ended before its calls");
  if (!WasConnected(context_)) error = Unreached(error);
  std::lock_guard lock(mutex_);
  self = std::move(self_);
  is_broken_ = true;
  outgoing_.clear();
  for (const auto& [id, call] : calls_) {
    call->lost = call->is_sent ? error : Unreached(error);
    DeliverSoon(call);
  }
}

}  // namespace terrace
