#include "worker/server/execute_reactor.h"

#include <chrono>
#include <utility>

#include "base/grpc_status.h"
#include "worker/server/proto_convert.h"

namespace terrace {
namespace {

std::string_view TraceParent(const grpc::CallbackServerContext& context) {
  const auto found = context.client_metadata().find("traceparent");
  if (found == context.client_metadata().end()) return {};
  return {found->second.data(), found->second.size()};
}

}  // namespace

grpc::ServerWriteReactor<v1::ExecuteEvent>* ExecuteReactor::Start(const Options& options,
                                                                  const ExecuteHost& host,
                                                                  grpc::CallbackServerContext& context,
                                                                  const v1::ExecuteRequest& request) {
  const std::shared_ptr<ExecuteReactor> call(new ExecuteReactor(options, host, context));
  call->self_ = call;
  call->Begin(request,
              ToMonoDeadline(context.deadline(), std::chrono::system_clock::now(), RealClock().Now()));
  return call.get();
}

ExecuteReactor::ExecuteReactor(const Options& options, const ExecuteHost& host,
                               grpc::CallbackServerContext& context)
    : ExecuteCall(options, host, TraceParent(context)), host_(host), context_(context) {}

void ExecuteReactor::OnReady() {
  std::lock_guard lock(mutex_);
  Continue();
}

// Writes the next event, or says the end after the last one. With mutex_ held.
void ExecuteReactor::Continue() {
  if (is_writing_ || is_finished_) return;
  if (std::optional<Waiting> next = Take(); next.has_value()) {
    is_writing_ = true;
    written_ = std::move(next->event);
    StartWrite(&written_);
  } else if (const std::optional<Status> end = TakeEnd(); end.has_value()) {
    is_finished_ = true;
    SetReasonTrailer(context_, *end);
    Finish(ToGrpcStatus(*end));
  }
}

void ExecuteReactor::Abandon() {
  Close();
  host_.wake();  // it may have nothing to do but what is paused
}

void ExecuteReactor::OnWriteDone(bool ok) {
  if (!ok) Abandon();
  std::lock_guard lock(mutex_);
  is_writing_ = false;
  Continue();
}

void ExecuteReactor::OnDone() {
  // The last reference may be this one: nothing is touched after the local one ends.
  const std::shared_ptr<ExecuteReactor> self = std::move(self_);
}

}  // namespace terrace
