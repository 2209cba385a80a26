// One answer on its way through the tiers: a state machine driven by the events of one worker call at a time.
// Kept alive by that call, or by the WaitingRoom; no thread of its own. Everything but Cancel, Resume and
// OnHoldEnd is called by one thread at a time.
//
//   Advance -> (a replica) -> events ... OnAttemptDone -> accepted: Finish
//     ^  ^                                    |-> not confident: next step, with the answer as its draft
//     |  +------------------------------------+-> failed: another replica, behind the tokens that came
//     +-- WaitingRoom <-- none to go on at, or a          else next step, unless something was shown
//                         suspect (poison.h) to keep from
//
// A client sees one stream: what came is never lost, repeated or changed by another attempt, as a replica of
// the same model goes on with the same tokens that the first would have given. Failover bounds the attempts;
// those before an answer's first token take from the tier's RetryBudget too.
//
// The last step's text goes out as it comes; an earlier step's is held back until its gate accepts it, so a
// client never sees an answer that is thrown away. A gate may judge it early: with a token, or by a timer
// between two, when the time of its hold is over. Where the plan chooses by the first token, the first step's
// gate judges that, and NextStep may leave steps out.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "router/dispatch/answers.h"
#include "router/dispatch/arrival_meter.h"
#include "router/dispatch/attempts.h"
#include "router/dispatch/draft.h"
#include "router/dispatch/failover.h"
#include "router/dispatch/shared_request.h"
#include "router/dispatch/tier_answer.h"
#include "router/dispatch/timers.h"

namespace terrace {

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(std::shared_ptr<Answers> owner, std::shared_ptr<SharedRequest> shared, uint32_t draw);

  void Start() { Advance(); }                // once
  void Cancel() { cancellation_.Cancel(); }  // any thread
  void Resume() { cancellation_.Resume(); }  // any thread: there is room for more again

 private:
  class Events;
  struct Attempt {  // the call in progress
    AnswerAttempt report = {};
    ReplicaId replica = 0;
    std::string instance = {};
    bool pays_for_prompt = false;
    bool has_started = false;  // the worker has begun with it
    uint64_t boarded = 0;      // Quarantine::deaths, before it
    Quarantine::Trial trial = {};
    uint32_t cached_tokens = 0;
    uint32_t speculated_tokens = 0, accepted_speculated_tokens = 0;  // as of TokenUsage; 0 until its end
    std::shared_ptr<CancelSlot> slot = {};
    std::shared_ptr<CallObserver> observer = {};
    InFlightLease lease = {};
    MonoTime started = {};
    ArrivalMeter arrivals = {};
    Status protocol_error = {};
  };

  void Advance();
  Status TryStart();
  Status Begin(const TierView& tier);
  Status CountAttempt();
  void Call(Boarded boarded, const TierView& tier);
  ExecuteSpec MakeSpec(const ReplicaView& replica, const TierView& tier);
  void Wait(bool is_kept_apart);

  void OnStarted(uint32_t cached_tokens);
  void OnPromptScores(const std::vector<WorkerToken>& scores);
  void OnDraftRecord(const std::string& record);
  // `paused`: they, or those before, were not read at once, as the client was slow.
  void OnTokens(const std::vector<WorkerToken>& tokens, bool paused);
  void Measure(size_t tokens, bool paused, MonoTime now);
  void TellPace();
  void OnToken(const WorkerToken& token, MonoTime now);
  void Judge(MonoTime now);
  void StartHold();
  void StopHold();
  void OnHoldEnd();
  void OnAttemptDone(const StatusOr<ExecuteResult>& result);
  void OnCancelled(const StatusOr<ExecuteResult>& result);
  void OnAnswered(AnswerEnd end, const TokenUsage& usage);
  void OnFailed(const Status& error);
  DeadAttempt AfterDeath(const Status& error) const;
  void Record(Recorder::AttemptResult result, const TokenUsage& usage);
  void ReportSignals();
  TokenUsage Usage(uint32_t completion_tokens) const;
  TokenUsage UsageSoFar() const { return Usage(static_cast<uint32_t>(answer_->log().size())); }
  void Show(AnswerPiece piece, MonoTime now);
  void OnFirstShown(MonoTime now);
  void Send(AnswerPiece piece);
  void ToNextStep();
  void Finish(const Status& status);

  const PlanStep& step() const { return shared_->plan()[step_]; }
  bool is_last_step() const { return step_ + 1 == shared_->plan().size(); }
  // Of the first step's answer as far as it has come.
  AnswerSignals FirstSignals() const {
    return step_ == 0 && answer_.has_value() ? answer_->judged() : first_;
  }
  // The text goes out as it comes.
  bool is_live() const {
    return !request_->is_ranked() && (step().gate.is_open() || answer_->verdict() == Verdict::kAccepted);
  }
  // The answer has begun, and no other can take its place.
  bool must_go_on() const {
    return answer_.has_value() && answer_->has_begun() && (is_shown_ || is_last_step());
  }
  MonoTime Now() const { return shared_->Now(); }
  Recorder& recorder() const { return shared_->state().parts.recorder; }

  const std::shared_ptr<Answers> owner_;
  const std::shared_ptr<SharedRequest> shared_;
  const RequestPtr request_;
  const uint32_t draw_;
  Cancellation cancellation_;

  // Held while a call's tokens are taken, and while the housekeeper judges between two of them.
  std::mutex mutex_;
  // GUARDED_BY(mutex_): set while a call runs whose answer is to be judged by then; the housekeeper does
  // nothing without it.
  std::optional<Timers::Id> hold_timer_;

  size_t step_ = 0;
  Failover failover_;                 // at this step
  std::optional<TierAnswer> answer_;  // of this step, from its first attempt on
  std::optional<Attempt> attempt_;    // at it
  Draft draft_;                       // what the steps before answered last
  AnswerSignals first_ = {};          // of the first step's answer, once another is asked
  WorkerLosses losses_;
  bool is_shown_ = false;               // something was sent: from now on this step's answer is the answer
  bool is_interrupted_ = false;         // an attempt broke off, and no token has come since
  MonoTime last_received_ = {};         // when a token came
  std::optional<MonoTime> last_token_;  // when one was shown
  AnswerRecord record_;                 // what is known for the end
};

}  // namespace terrace
