// One answer that a caller is sent, over a stream of its own (ExecuteReactor) or one that it shares with
// others (ServeHub): the sink of its sequence, and what waits to be sent. Past a bound of that the sequence
// pauses, and goes on when half of it is free again. So what a call holds is bounded by that and one step's
// output. Shared by who sends it and, until the sequence has ended, the engine. Any thread.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"
#include "proto/terrace/v1/worker.pb.h"
#include "worker/engine/sequence.h"
#include "worker/server/worker_metrics.h"

namespace terrace {

// Who runs the sequences: an Engine, or what stands for it in benchmarks. Its functions may be called by any
// thread; it outlives the calls.
struct ExecuteHost {
  std::string instance;                                                    // of WorkerDescription
  std::function<Status(SequenceSpec, std::shared_ptr<TokenSink>)> submit;  // as Engine::Submit
  std::function<void()> wake;                                              // as Engine::Wake
  WorkerMetrics& metrics;
};

// UNAVAILABLE, reason wrong_instance, when another process is meant than the one that is `here`.
Status CheckInstance(const std::string& meant, const std::string& here);

class ExecuteCall : public TokenSink, public std::enable_shared_from_this<ExecuteCall> {
 public:
  struct Options {
    // Log-probabilities (of tokens, scores and their alternatives) that may wait for the client: about 4 MiB.
    size_t buffer_logprobs = size_t{1} << 16;
  };
  struct Waiting {
    v1::ExecuteEvent event;
    size_t logprobs = 0;
  };

  // `traceparent`: as the caller sent it.
  ExecuteCall(const Options& options, const ExecuteHost& host, std::string_view traceparent);

  // Once: the sequence of `request` is submitted, or the call ends with an error and this is false.
  bool Begin(const v1::ExecuteRequest& request, std::optional<MonoTime> deadline);
  void Refuse(const Status& error);  // instead of Begin
  // Nobody reads any more. The host is to be woken after it. Idempotent.
  void Close();

  // What waits longest, if anything: no more of it waits. Without `has_credit` only what has no
  // log-probabilities.
  std::optional<Waiting> Take(bool has_credit = true);
  // What the call ends with, once nothing waits any more: OK behind its event `finished`, else an error.
  std::optional<Status> TakeEnd();

  void OnStarted(uint32_t cached_tokens) override;
  void OnDraftRecord(const DraftRecord& record) override;
  void OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) override;
  void OnPromptScores(uint32_t first_index, std::span<const SampledToken> scores) override;
  void OnFinish(const SequenceResult& result) override;
  bool is_closed() const override { return is_closed_; }
  bool is_full() const override { return is_full_; }

 protected:
  // There is something to take. No lock of this object is held.
  virtual void OnReady() = 0;

 private:
  Status Submit(const v1::ExecuteRequest& request, std::optional<MonoTime> deadline);
  v1::ExecuteEvent* Reserve(std::span<const SampledToken> tokens, v1::ExecuteEvent::EventCase kind);
  void LogFinished(const SequenceResult& result) const;
  void End(Status status);

  const Options options_;
  const ExecuteHost& host_;
  const std::string traceparent_;
  std::string request_id_;  // set before the engine has it

  std::atomic<bool> is_closed_ = false, is_full_ = false;
  std::mutex mutex_;
  std::deque<Waiting> buffer_;    // GUARDED_BY(mutex_)
  size_t buffered_logprobs_ = 0;  // GUARDED_BY(mutex_): of buffer_
  // GUARDED_BY(mutex_): goes with the tokens that come next.
  std::optional<DraftRecord> draft_record_;
  std::optional<Status> end_;  // GUARDED_BY(mutex_): of the sequence, until it is taken
};

}  // namespace terrace
