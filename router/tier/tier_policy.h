// Which tiers answer a request, in which order, and why. A TierPolicy is const and pure: its plan follows
// from the request and the snapshot. Thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "router/cluster/cluster_view.h"
#include "router/request/answer.h"
#include "router/request/request.h"
#include "router/tier/answer_signals.h"
#include "router/tier/gate.h"

namespace terrace {

struct PlanStep {
  size_t tier = 0;  // index into ClusterView::tiers
  Gate gate = {};
  // The answer of the step before is verified as a draft: this step's own comes sooner, and is no other.
  bool verifies = false;
  // What the beginning of the first step's answer has to be for this step to be asked after it; else one
  // behind this is.
  Gate choice = {};
};

struct TierPlan {
  // In order; the last one's `gate` and `choice` are open. At least one: a tier without a ready replica may
  // come back while the request is under way, so it is the dispatcher's to skip.
  std::vector<PlanStep> steps = {};
  std::string reason = {};   // why these, as replies and logs say it (docs/how-to/policies.md)
  bool names_step = false;   // the reason goes on with the step that answered
  bool is_measured = false;  // the policy's own plan, whole: calibrations and shadows are about these
  bool is_limited = false;   // the request's own limits of price and time have been kept to
  // The first step's gate judges its answer's first token, and the steps' `choice` who else answers.
  bool chooses_by_first_token = false;
};

// The step after `step`: the next one whose `choice` accepts `first`, the signals of the first step's answer
// as far as it came. Those of none (it could not be asked) are accepted by open ones alone. `step` is not the
// last one (CHECK).
size_t NextStep(std::span<const PlanStep> steps, size_t step, const AnswerSignals& first);

// Whether margins or entropies of the answer of `step` are looked at, by its gate or by the choice that the
// first one's answer makes.
bool NeedsSignals(std::span<const PlanStep> steps, size_t step);

// Why the last tier answered where the first one was to begin.
inline constexpr char kNoFirstToken[] = "fallback: no first token";
// Why `step` answered, as replies and logs say it; `first` as of NextStep.
std::string ReasonOf(const TierPlan& plan, size_t step, const AnswerSignals& first);

// A request's prompt as the tiers see it: what a plan may look at besides the request and the snapshot, and
// follows from them. Counted only when asked for. One thread at a time.
class PromptMeter {
 public:
  virtual ~PromptMeter() = default;
  // While nothing is known of the tier's tokenizer, its bytes. Errors are the request's: the tier cannot make
  // tokens of the prompt, or its context does not hold them with max_tokens.
  virtual StatusOr<size_t> Tokens(const TierView& tier) const = 0;
  // Of those, what the ready replica that has most of them has in its cache.
  virtual StatusOr<size_t> CachedTokens(const TierView& tier) const = 0;
};

struct PlanQuery {
  const Request& request;
  const ClusterView& view;
  const PromptMeter& prompt;
  // Of the view's tiers, as this router has seen them lately. Filled only where the policy or a limit of the
  // request needs them: empty, nothing is known.
  std::span<const AnswerSpeed> speeds = {};
};

class TierPolicy {
 public:
  virtual ~TierPolicy() = default;
  // An error is the request's: what it asks for cannot be had (budget_too_small), or of its prompt.
  virtual StatusOr<TierPlan> Plan(const PlanQuery& query) const = 0;
  // Looks at PlanQuery::speeds for each request.
  virtual bool needs_speeds() const { return false; }
  // Why its plans are not what it was made for, if so: FAILED_PRECONDITION, reason stale_calibration.
  virtual Status Check(const ClusterView&) const { return {}; }
};

// The tier that the client named.
std::unique_ptr<TierPolicy> MakeNamedPolicy(size_t tier);

// These steps for every request. The last one's gate is open, the others' are not (CHECK).
std::unique_ptr<TierPolicy> MakeCascadePolicy(std::vector<PlanStep> steps);

}  // namespace terrace
