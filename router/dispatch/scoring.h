// One score request: the log-probabilities of given tokens under one tier. Kept alive by its worker call, or
// by the WaitingRoom; no thread of its own. Everything but Cancel is called by one thread at a time.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "router/dispatch/attempts.h"
#include "router/dispatch/prompt_scores.h"
#include "router/dispatch/shared_request.h"

namespace terrace {

class Scoring : public std::enable_shared_from_this<Scoring> {
 public:
  // Of a request that SharedRequest::CheckLastTier accepts: its plan is one tier.
  Scoring(std::shared_ptr<SharedRequest> shared, Admission::Ticket ticket, Dispatcher::OnScore on_score);

  void Start() { Advance(); }                // once
  void Cancel() { cancellation_.Cancel(); }  // any thread

 private:
  class Events;
  void Advance();
  Status TryStart();
  void Wait();
  Status CancelReason() const;
  void OnScores(const std::vector<WorkerToken>& scores);
  void OnAttemptDone(const StatusOr<ExecuteResult>& result);
  void TakeScores();
  void OnFailed(const Status& error);
  void RecordBrokenOff(Recorder::AttemptResult result);
  void Finish(const Status& status);
  size_t tier() const { return shared_->plan().front().tier; }
  DispatchState& state() const { return shared_->state(); }
  MonoTime Now() const { return shared_->Now(); }

  const std::shared_ptr<SharedRequest> shared_;
  const RequestPtr request_;
  Admission::Ticket ticket_;
  const Dispatcher::OnScore on_score_;
  Cancellation cancellation_;

  std::set<ReplicaId> tried_;
  Status failure_, worker_error_;  // the last one, as the client may see it and as the worker gave it
  WorkerLosses losses_;
  std::optional<MonoTime> waiting_since_;  // to be kept apart from others
  bool has_started_ = false;               // the worker, with the attempt in progress
  // Of the attempt in progress.
  ReplicaId replica_ = 0;
  std::string instance_, model_digest_;  // of it
  uint64_t boarded_ = 0;                 // Quarantine::deaths, before it
  Quarantine::Trial trial_;
  PromptPtr prompt_;
  std::optional<PromptScores> scores_;
  std::shared_ptr<CancelSlot> slot_;
  std::shared_ptr<CallObserver> observer_;
  InFlightLease lease_;
  AnswerAttempt attempt_;
  ScoreAnswer answer_;
  Status protocol_error_;
  RequestRecord record_;
};

}  // namespace terrace
