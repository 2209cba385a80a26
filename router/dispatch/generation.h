// One answer on its way through the tiers: a state machine driven by the events of one worker call at a time.
// Kept alive by that call; no thread of its own. Everything but Cancel is called by one thread at a time.
//
//   Advance -> (a replica) -> events ... OnAttemptDone -> accepted: Finish
//      ^                                     |-> not confident: next step
//      +-------------------------------------+-> failed, nothing shown: another replica, else next step
//
// An answer is tried at RetryOptions::max_attempts replicas of a tier, while the tier's RetryBudget lasts.
//
// The last step's text goes out as it comes; an earlier step's is held back until its gate accepts it, so a
// client never sees an answer that is thrown away.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "router/dispatch/answer_text.h"
#include "router/dispatch/answers.h"
#include "router/dispatch/attempts.h"
#include "router/dispatch/prompt_scores.h"
#include "router/dispatch/shared_request.h"

namespace terrace {

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(std::shared_ptr<Answers> owner, std::shared_ptr<SharedRequest> shared, uint32_t draw);

  void Start() { Advance(); }                // once
  void Cancel() { cancellation_.Cancel(); }  // any thread
  void Resume() { cancellation_.Resume(); }  // any thread: there is room for more again

 private:
  class Events;
  struct Attempt {  // the one in progress
    AnswerAttempt report = {};
    AnswerText text;
    PromptPtr prompt = {};
    std::string echo = {};
    std::optional<PromptScores> scores = {};  // when they are asked for
    bool pays_for_prompt = false;
    uint32_t vocab_size = 0, cached_tokens = 0;
    std::shared_ptr<CancelSlot> slot = {};
    std::shared_ptr<CallObserver> observer = {};
    InFlightLease lease = {};
    AnswerPiece held =
        {};  // all of it, while the gate has not accepted: one piece, so that no sink's buffer is flooded
    MonoTime started = {};
    Status protocol_error = {};
  };

  void Advance();
  Status TryStart();
  ExecuteSpec MakeSpec(PromptPtr prompt, const TierView& tier) const;

  void OnPromptScores(const std::vector<WorkerToken>& scores);
  void OnTokens(const std::vector<WorkerToken>& tokens);
  void OnAttemptDone(const StatusOr<ExecuteResult>& result);
  void OnCancelled(const StatusOr<ExecuteResult>& result);
  void OnAnswered(AnswerEnd end, const TokenUsage& usage);
  void OnFailed(const Status& error);
  void Record(Recorder::AttemptResult result, const TokenUsage& usage);
  TokenUsage UsageSoFar(Recorder::AttemptResult result) const;
  void Show(AnswerPiece piece);
  void Send(AnswerPiece piece);
  void ToNextStep();
  void Finish(const Status& status);

  const PlanStep& step() const { return shared_->plan()[step_]; }
  bool is_last_step() const { return step_ + 1 == shared_->plan().size(); }
  bool is_live() const { return !step().gate.threshold().has_value() && !request_->is_ranked(); }
  bool scores_prompt() const { return draw_ == 0 && request_->prompt_logprobs().has_value(); }
  MonoTime Now() const { return shared_->Now(); }
  Recorder& recorder() const { return shared_->state().parts.recorder; }

  const std::shared_ptr<Answers> owner_;
  const std::shared_ptr<SharedRequest> shared_;
  const RequestPtr request_;
  const uint32_t draw_;
  Cancellation cancellation_;

  size_t step_ = 0;
  std::set<ReplicaId> tried_;  // of this step
  Status failure_;             // the last one of this step, as the client may see it
  Status worker_error_;        // and as the worker gave it
  std::optional<Attempt> attempt_;
  bool is_shown_ = false;               // something was sent: from now on this attempt is the answer
  std::optional<MonoTime> last_token_;  // when one was shown
  RequestRecord record_;                // what is known for the end
};

}  // namespace terrace
