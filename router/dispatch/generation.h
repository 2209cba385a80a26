// One request on its way through the tiers: a state machine driven by the events of one worker call at a
// time. Kept alive by that call; no thread of its own. Everything but Cancel is called by one thread at a
// time.
//
//   Advance -> (a replica) -> events ... OnAttemptDone -> accepted: Finish
//      ^                                     |-> not confident: next step
//      +-------------------------------------+-> failed, nothing shown: another replica once, else next step
//
// The last step's text goes to the sink as it comes; an earlier step's is held back until its gate accepts
// it, so a client never sees an answer that is thrown away.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "router/dispatch/answer_text.h"
#include "router/dispatch/attempts.h"
#include "router/dispatch/prompt.h"

namespace terrace {

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(std::shared_ptr<DispatchState> state, Admission::Ticket ticket, RequestPtr request,
             const CatalogEntry& entry, std::shared_ptr<AnswerSink> sink);

  void Start();                              // once
  void Cancel() { cancellation_.Cancel(); }  // any thread

 private:
  class Events;
  struct Attempt {  // the one in progress
    AnswerAttempt report = {};
    AnswerText text;
    uint32_t vocab_size = 0;
    std::shared_ptr<CancelSlot> slot = {};
    AnswerPiece held =
        {};  // all of it, while the gate has not accepted: one piece, so that no sink's buffer is flooded
    MonoTime started = {};
    Status protocol_error = {};
  };

  void Advance();
  Status TryStart(const TierView& tier);
  StatusOr<PromptPtr> PromptFor(const TierView& tier);
  ExecuteSpec MakeSpec(PromptPtr prompt) const;

  void OnTokens(const std::vector<WorkerToken>& tokens);
  void OnAttemptDone(const StatusOr<ExecuteResult>& result);
  void OnAnswered(AnswerEnd end, const TokenUsage& usage);
  void OnFailed(const Status& error);
  void Record(Recorder::AttemptResult result, const TokenUsage& usage);
  TokenUsage UsageSoFar(Recorder::AttemptResult result) const;
  void Show(AnswerPiece piece);
  void ToNextStep();
  void Finish(const Status& status);

  const PlanStep& step() const { return plan_[step_]; }
  bool is_last_step() const { return step_ + 1 == plan_.size(); }
  bool is_live() const { return !step().gate.threshold().has_value(); }
  MonoTime Now() const { return state_->parts.clock.Now(); }

  const std::shared_ptr<DispatchState> state_;
  Admission::Ticket ticket_;
  const RequestPtr request_;
  const CatalogEntry& entry_;  // the catalog outlives requests
  const std::shared_ptr<AnswerSink> sink_;
  const uint64_t seed_;  // the same for every attempt
  Cancellation cancellation_;

  std::vector<PlanStep> plan_;
  size_t step_ = 0;
  std::set<ReplicaId> tried_;                 // of this step
  Status failure_;                            // the last one of this step
  std::map<std::string, PromptPtr> prompts_;  // by text digest
  std::optional<Attempt> attempt_;
  size_t prompt_tokens_ = 0;            // of the attempt
  bool is_shown_ = false;               // the client has seen something
  std::optional<MonoTime> last_token_;  // when one was shown
  RequestRecord record_;                // what is known for the end
};

}  // namespace terrace
