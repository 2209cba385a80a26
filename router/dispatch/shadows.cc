#include "router/dispatch/shadows.h"

#include <algorithm>
#include <chrono>
#include <string_view>
#include <utility>

#include "base/log.h"
#include "base/rng.h"
#include "router/dispatch/answer_text.h"
#include "router/dispatch/attempts.h"
#include "router/dispatch/poison.h"

namespace terrace {
namespace {

constexpr uint64_t kDrawStream = 1;          // of the dispatcher's seed; 0 is of requests' seeds
constexpr double kMostSaturation = 0.5;      // of the last tier's places, from which on it is left alone
constexpr uint32_t kMoreTokens = 16;         // than twice the smaller tier's: a longer answer does not agree
constexpr size_t kMostTextBytes = 16 << 10;  // that the housekeeper tokenizes for one
constexpr auto kPatience = std::chrono::minutes(2);

bool IsComparable(const Request& request) {
  return request.sampling().temperature == 0 && request.draws() == 1 &&
         !request.prompt_logprobs().has_value();
}

std::string_view WithoutBlanks(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

struct ShownText {
  std::string text = {};
  bool is_cut = false;  // by its length: how it would have gone on nobody knows
};

// As a client is shown it, the tools' calls written out. Of one that is cut, without what is held back: the
// beginning of a character, of a stop string or of a call.
ShownText Show(std::shared_ptr<const TextAssets> assets, const RequestPtr& request,
               const std::vector<TokenId>& tokens, bool is_cut) {
  AnswerText answer(std::move(assets), request);
  ShownText out{.is_cut = is_cut};
  const auto append = [&out](const AnswerPiece& piece) {
    out.text += piece.text;
    for (const ToolCall& call : piece.tool_calls) out.text += Concat("\n", call.name, call.arguments);
  };
  for (const TokenId token : tokens) append(answer.Push({.token = token}));
  if (!is_cut) append(answer.Finish());
  return out;
}

bool IsSame(const ShownText& a, const ShownText& b) {
  const std::string_view of_a = WithoutBlanks(a.text), of_b = WithoutBlanks(b.text);
  return of_a == of_b || (a.is_cut && of_b.starts_with(of_a)) || (b.is_cut && of_a.starts_with(of_b));
}

// It gives way: not a failure.
Status InTheWay() { return Cancelled("others wait for the tier"); }

// `room`: in the context, behind the prompt; at least 1.
uint32_t MostTokens(const Request& request, size_t draft_tokens, uint32_t room) {
  const uint32_t most = std::min(2 * static_cast<uint32_t>(draft_tokens) + kMoreTokens, room);
  return request.max_tokens() == 0 ? most : std::min(most, request.max_tokens());
}

// But for max_tokens.
ExecuteSpec MakeSpec(const Request& request, const ReplicaView& replica, PromptPtr prompt,
                     std::vector<TokenId> draft, MonoTime now) {
  ExecuteSpec spec{.request_id = request.request_id(),
                   .instance = replica.description.instance,
                   .prompt = std::move(prompt),
                   .draft = std::move(draft),
                   .sampling = request.sampling(),
                   .stop_tokens = request.stop_tokens(),
                   .ignore_eos = request.ignore_eos(),
                   .speculation_max_tokens = request.speculation_max_tokens(),
                   .priority = -static_cast<int32_t>(Request::kMaxPriority),
                   .cache_salt = request.cache_salt(),
                   .traceparent = request.trace().Header(),
                   .tracestate = request.trace().state,
                   .deadline = now + kPatience};
  if (!spec.sampling.seed.has_value()) spec.sampling.seed = 0;  // greedy: nothing is drawn
  return spec;
}

}  // namespace

// One call at the last tier. Events come from one thread at a time.
class Shadows::Call : public ExecuteEvents {
 public:
  struct Parts {
    std::shared_ptr<Shadows> owner = {};
    uint64_t id = 0;
    std::shared_ptr<CancelSlot> slot = {};
    std::shared_ptr<CallObserver> observer = {};
    uint64_t boarded = 0;  // see WorkerDeath
    InFlightLease lease = {};
  };
  // `draft`: the pair's answer in the tokens of the tier.
  Call(Parts parts, const TierView& tier, const PromptPtr& prompt, const Pair& pair,
       const std::vector<TokenId>& draft)
      : parts_(std::move(parts)),
        death_{.boarded = parts_.boarded},
        pair_(pair),
        text_(tier.text),
        draft_tokens_(draft.size()),
        answer_(tier, prompt, pair.request, /*draw=*/0) {
    answer_.Propose(draft);
  }

  void OnStarted(uint32_t) override { death_.had_begun = true; }
  void OnPromptScores(std::vector<WorkerToken>) override {}  // none are asked for
  void OnTokens(std::vector<WorkerToken> tokens) override {
    parts_.lease.EndPrompt();
    death_.had_begun = true;
    for (const WorkerToken& token : tokens) {
      if (is_ended()) return;
      protocol_error_ = answer_.Push(token, MonoTime()).status();
      if (is_ended()) parts_.slot->Cancel();
    }
  }
  void OnDone(StatusOr<ExecuteResult> result) override {
    parts_.lease.End();
    const Status end = is_ended() ? protocol_error_ : result.status();
    const auto owner = std::move(parts_.owner);
    const bool is_cut = !is_ended() && result.ok() && result->end == AnswerEnd::kLength;
    death_.SetPlace(answer_.log().size(), draft_tokens_);
    owner->OnDone(parts_.id, *parts_.observer, death_,
                  end.ok() ? StatusOr<double>(HowFarItAgrees(is_cut)) : end);
  }

 private:
  // No further token is wanted.
  bool is_ended() const { return answer_.is_over() || !protocol_error_.ok(); }

  // Behind the end of an answer that was cut nothing is compared.
  double HowFarItAgrees(bool is_cut) const {
    const std::vector<TokenId>& log = answer_.log();
    const ShownText first = Show(pair_.answer.text, pair_.request, pair_.answer.tokens, pair_.is_cut);
    const ShownText second = Show(text_, pair_.request, log, is_cut);
    const bool is_shorter_cut = draft_tokens_ <= log.size() ? pair_.is_cut : is_cut;
    const size_t compared =
        is_shorter_cut ? std::min(draft_tokens_, log.size()) : std::max(draft_tokens_, log.size());
    return Agreement(IsSame(first, second), answer_.accepted_draft_tokens(), compared);
  }

  Parts parts_;
  WorkerDeath death_;  // as far as it is known
  const Pair pair_;
  const std::shared_ptr<const TextAssets> text_;
  const size_t draft_tokens_;
  TierAnswer answer_;
  Status protocol_error_;
};

Shadows::Shadows(const DispatcherParts& parts, Quarantine& quarantine)
    : parts_(parts), quarantine_(quarantine) {
  for (const CatalogEntry& entry : parts.catalog.entries()) {
    if (!entry.shadow.has_value()) continue;
    watched_.try_emplace(&entry, entry);
    parts_.recorder.OnShadowedPolicy(entry.id);
  }
}

bool Shadows::HasDrifted(const CatalogEntry& entry) const {
  const auto found = watched_.find(&entry);
  return found != watched_.end() && found->second.has_drifted;
}

void Shadows::Offer(const CatalogEntry& entry, const RequestPtr& request, const TierAnswer& answer,
                    AnswerEnd end) {
  const auto found = watched_.find(&entry);
  if (found == watched_.end() || !IsComparable(*request)) return;
  Watched& policy = found->second;
  if (RandomUniform(parts_.seed, policy.seen++, kDrawStream) >= entry.shadow->share) return;
  std::lock_guard lock(mutex_);
  if (is_closed_) return;
  if (policy.in_flight >= entry.shadow->max_in_flight)
    return parts_.recorder.OnShadow(entry.id, Recorder::ShadowResult::kDropped);
  ++policy.in_flight;
  offered_.push_back({&policy, request, answer.prompt(), answer.ToDraft(), end == AnswerEnd::kLength});
}

void Shadows::Housekeep(DispatchState& state) {
  std::vector<Pair> offered;
  std::vector<std::shared_ptr<CancelSlot>> in_the_way;
  {
    std::lock_guard lock(mutex_);
    offered.swap(offered_);
    for (const auto& [id, running] : running_) {
      if (parts_.admission.queued(running.policy->entry.tiers.back()) > 0) in_the_way.push_back(running.slot);
    }
    for (const auto& [entry, policy] : watched_)
      parts_.recorder.OnAgreement(entry->id, policy.window.agreement(), policy.has_drifted);
  }
  for (const auto& slot : in_the_way) slot->Cancel();
  for (const Pair& pair : offered) {
    if (Begin(state, pair).ok()) continue;
    std::lock_guard lock(mutex_);
    --pair.policy->in_flight;
    parts_.recorder.OnShadow(pair.policy->entry.id, Recorder::ShadowResult::kDropped);
  }
}

// The answer's own where the tokenizer is one. Another one's work is kept small: the housekeeper has other
// things to do.
StatusOr<PromptPtr> Shadows::PromptOf(const Pair& pair, const TierView& tier) {
  const Request& request = *pair.request;
  if (pair.answer.text_digest == tier.text_digest) {
    RETURN_IF_ERROR(CheckTokenIds(request, tier));
    return pair.prompt;
  }
  const size_t bytes = TextBytes(request) + pair.answer.text->tokenizer->Decode(pair.answer.tokens).size();
  if (bytes > kMostTextBytes)
    return ResourceExhausted("there are ", bytes, " bytes to tokenize, limit ", kMostTextBytes);
  return EncodeInput(pair.request, tier);
}

Status Shadows::Begin(DispatchState& state, const Pair& pair) {
  const size_t tier_index = pair.policy->entry.tiers.back();
  const Request& request = *pair.request;
  if (parts_.admission.queued(tier_index) > 0 || parts_.admission.saturation(tier_index) >= kMostSaturation)
    return InTheWay();
  const auto view = parts_.cluster.View();
  const TierView& tier = view->tiers[tier_index];
  if (tier.text == nullptr) return NoCapacity(tier);
  ASSIGN_OR_RETURN(const PromptPtr prompt, PromptOf(pair, tier));
  RETURN_IF_ERROR(CheckContext(request, prompt->size(), tier));
  RETURN_IF_ERROR(
      CheckQuarantine(state, {.request = request, .view = *view, .tier = tier_index, .prompt = *prompt}));
  const Hash128 fingerprint = RequestFingerprint(tier.model_digest, request.tenant()->name, *prompt);
  if (quarantine_.IsSuspect(fingerprint)) return PoisonRequest();
  ASSIGN_OR_RETURN(const PickedReplica picked, PickReplica(state, request, *view, tier_index, *prompt, {}));
  const ReplicaView& replica = *picked.replica;
  const auto prompt_tokens = static_cast<uint32_t>(prompt->size());
  const auto slot = std::make_shared<CancelSlot>();
  Call::Parts parts{.owner = shared_from_this(),
                    .slot = slot,
                    .observer = replica.observer,
                    .boarded = quarantine_.deaths(),
                    .lease = InFlightLease(replica.in_flight,
                                           prompt_tokens - std::min(prompt_tokens, picked.cached_tokens))};
  {
    std::lock_guard lock(mutex_);
    parts.id = ++last_id_;
    running_[parts.id] = {.policy = pair.policy,
                          .request = pair.request,
                          .slot = slot,
                          .replica = replica.id,
                          .instance = replica.description.instance,
                          .fingerprint = fingerprint};
  }
  std::vector<TokenId> draft = EncodeDraft(pair.answer, tier);
  const auto call = std::make_shared<Call>(std::move(parts), tier, prompt, pair, draft);
  const size_t draft_tokens = draft.size();
  ExecuteSpec spec = MakeSpec(request, replica, prompt, std::move(draft), parts_.clock.Now());
  spec.max_tokens = MostTokens(request, draft_tokens, tier.context_length - prompt_tokens);
  const auto client = replica.client;
  slot->Set(client->Execute(spec, call));
  return {};
}

void Shadows::OnDone(uint64_t id, CallObserver& observer, WorkerDeath death,
                     const StatusOr<double>& agreement) {
  using enum Recorder::ShadowResult;
  std::lock_guard lock(mutex_);
  if (is_closed_) return;  // the observer's cluster may be gone too
  const Running call = std::move(running_.extract(id).mapped());
  Watched& policy = *call.policy;
  --policy.in_flight;
  const bool gave_way = agreement.status().code() == StatusCode::kCancelled;
  if (!gave_way) observer.OnCallEnd(agreement.status());
  const size_t tier = policy.entry.tiers.back();
  death.silent = SilentProcess(call.instance, agreement.status());
  if (IsWorkerDeath(parts_, tier, call.replica, agreement.status(), death.had_begun) &&
      quarantine_.OnDeath(call.fingerprint, death, BackAt(parts_)) == Blame::kRequest) {
    RecordQuarantined(parts_, tier, *call.request);
  }
  if (agreement.ok()) return Compare(policy, *agreement);
  parts_.recorder.OnShadow(policy.entry.id, gave_way ? kDropped : kFailed);
}

// With mutex_ held.
void Shadows::Compare(Watched& policy, double agreement) {
  using enum Recorder::ShadowResult;
  const bool agrees = policy.window.Add(agreement);
  parts_.recorder.OnShadow(policy.entry.id, agrees ? kAgreed : kDisagreed, agreement);
  if (policy.has_drifted || !policy.window.has_drifted()) return;
  policy.has_drifted = true;
  Log(LogLevel::kError, "policy_drifted",
      {{"policy", policy.entry.id},
       {"pairs", policy.window.pairs()},
       {"disagreements", policy.window.disagreements()},
       {"max_disagreement", policy.entry.shadow->max_disagreement}});
}

void Shadows::Close() {
  std::map<uint64_t, Running> running;
  {
    std::lock_guard lock(mutex_);
    is_closed_ = true;
    offered_.clear();
    running.swap(running_);
  }
  for (const auto& [id, call] : running) call.slot->Cancel();
}

}  // namespace terrace
