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
#include "router/tier/calibration_policy.h"

namespace terrace {
namespace {

constexpr uint64_t kDrawStream = 1;          // of the dispatcher's seed; 0 is of requests' seeds
constexpr double kMostSaturation = 0.5;      // of a tier's places, from which on it is left alone
constexpr uint32_t kMoreTokens = 16;         // than twice the smaller tier's: a longer answer does not agree
constexpr size_t kMostTextBytes = 16 << 10;  // that the housekeeper tokenizes for one
constexpr auto kPatience = std::chrono::minutes(2);

constexpr char kRecordedTask[] = "shadow";

bool IsComparable(const Request& request) {
  return request.sampling().temperature == 0 && request.draws() == 1 &&
         !request.prompt_logprobs().has_value();
}

// Of those, one whose tier the policy chooses by itself; an answer is wanted.
bool IsRecordable(const Request& request) {
  return request.tier().empty() && !request.has_limits() && !request.is_prompt_only();
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
  // Nothing is shown of it: only its tokens may say what it would have become.
  if ((a.is_cut && of_a.empty()) || (b.is_cut && of_b.empty())) return false;
  return of_a == of_b || (a.is_cut && of_b.starts_with(of_a)) || (b.is_cut && of_a.starts_with(of_b));
}

struct ComparedAnswer {
  const Draft& answer;
  bool is_cut = false;
};

// How far two answers to a request agree; `encoded` is the first one in the tokens of the second one's tier.
// Behind the end of an answer that was cut nothing is compared.
double HowFarTheyAgree(const RequestPtr& request, const ComparedAnswer& first,
                       const std::vector<TokenId>& encoded, const ComparedAnswer& second) {
  const std::vector<TokenId>& tokens = second.answer.tokens;
  const ShownText a = Show(first.answer.text, request, first.answer.tokens, first.is_cut);
  const ShownText b = Show(second.answer.text, request, tokens, second.is_cut);
  const bool is_shorter_cut = encoded.size() <= tokens.size() ? first.is_cut : second.is_cut;
  const size_t compared =
      is_shorter_cut ? std::min(encoded.size(), tokens.size()) : std::max(encoded.size(), tokens.size());
  const auto differ = std::ranges::mismatch(encoded, tokens);
  return Agreement(IsSame(a, b), static_cast<size_t>(differ.in1 - encoded.begin()), compared);
}

// Of the answer's text, if another tokenizer has to make tokens of it.
size_t BytesToEncode(const Draft& answer, const std::string& text_digest) {
  if (answer.tokens.empty() || answer.text_digest == text_digest) return 0;
  return answer.text->tokenizer->Decode(answer.tokens).size();
}

// The housekeeper has other things to do.
Status CheckBytes(size_t bytes) {
  if (bytes <= kMostTextBytes) return {};
  return ResourceExhausted("there are ", bytes, " bytes to tokenize, limit ", kMostTextBytes);
}

// Of all of them there is one tokenizer.
bool SpeakAlike(const ClusterView& view, const std::vector<size_t>& tiers) {
  const std::string& digest = view.tiers[tiers.back()].text_digest;
  return std::ranges::all_of(tiers, [&](size_t tier) { return view.tiers[tier].text_digest == digest; });
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

// One call of a job. Events come from one thread at a time.
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
  // `draft`: what was said before, in the tokens of the tier.
  Call(Parts parts, const TierView& tier, const PromptPtr& prompt, Job job, std::vector<TokenId> draft)
      : parts_(std::move(parts)),
        death_{.boarded = parts_.boarded},
        job_(std::move(job)),
        tier_{tier.name, tier.model_digest, tier.text_digest, tier.parameters},
        vocab_size_(tier.vocab_size),
        draft_(std::move(draft)),
        answer_(tier, prompt, job_.request, /*draw=*/0) {}

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
    CallEnd end{.status = is_ended() ? protocol_error_ : result.status()};
    const auto owner = std::move(parts_.owner);
    const bool is_cut = !is_ended() && result.ok() && result->end == AnswerEnd::kLength;
    death_.SetPlace(answer_.log().size(), draft_.size());
    if (end.status.ok()) Say(is_cut);
    if (end.status.ok() && !job_.is_recorded) {
      const Said& first = job_.said.front();
      end.agreement = HowFarTheyAgree(job_.request, {first.answer, first.is_cut}, draft_,
                                      {job_.said.back().answer, is_cut});
    }
    end.job = std::move(job_);
    owner->OnDone(parts_.id, *parts_.observer, death_, std::move(end));
  }

 private:
  // No further token is wanted.
  bool is_ended() const { return answer_.is_over() || !protocol_error_.ok(); }

  void Say(bool is_cut) {
    const std::vector<TokenId>& log = answer_.log();
    RecordedAnswer record{.prompt_tokens = static_cast<uint32_t>(answer_.prompt()->size()),
                          .signals = answer_.text().signals()};
    if (!job_.said.empty() && job_.said.back().answer.text_digest == tier_.text_digest)
      record.draft_agreement = AgreementWith(job_.said.back().answer.tokens, log);
    job_.said.push_back({answer_.ToDraft(), is_cut, tier_, vocab_size_, record});
    job_.left = job_.left.subspan(1);
  }

  Parts parts_;
  WorkerDeath death_;  // as far as it is known
  Job job_;
  const RecordedTier tier_;
  const uint32_t vocab_size_;
  const std::vector<TokenId> draft_;
  TierAnswer answer_;
  Status protocol_error_;
};

Shadows::Watched::Watched(const CatalogEntry& of)
    : entry(of), takes_records(!of.shadow->records_file.empty()), window(*of.shadow) {
  if (takes_records) records.emplace(of.shadow->records_file, of.shadow->max_records);
}

Shadows::Shadows(const DispatcherParts& parts, Quarantine& quarantine)
    : parts_(parts), quarantine_(quarantine) {
  for (const CatalogEntry& entry : parts.catalog.entries()) {
    if (!entry.shadow.has_value()) continue;
    watched_.try_emplace(&entry, entry);
    parts_.recorder.OnShadowedPolicy(entry.id);
    if (!entry.shadow->records_file.empty()) parts_.recorder.OnRecordedPolicy(entry.id);
  }
}

bool Shadows::HasDrifted(const CatalogEntry& entry) const {
  const auto found = watched_.find(&entry);
  return found != watched_.end() && found->second.has_drifted;
}

void Shadows::Offer(const CatalogEntry& entry, const Ended& ended) {
  const auto found = watched_.find(&entry);
  if (found == watched_.end() || !IsComparable(*ended.request)) return;
  Watched& policy = found->second;
  Job job{.policy = &policy, .is_recorded = policy.takes_records && IsRecordable(*ended.request)};
  const bool is_pair = ended.answer != nullptr && (job.is_recorded || entry.shadow->judges_drift());
  if (!job.is_recorded && !is_pair) return;
  if (RandomUniform(parts_.seed, policy.seen++, kDrawStream) >= entry.shadow->share) return;
  const std::span<const size_t> tiers = entry.tiers;
  job.request = ended.request;
  job.prompts.assign(ended.prompts.begin(), ended.prompts.end());
  job.left = job.is_recorded ? tiers : tiers.last(1);
  if (!job.is_recorded) job.said.push_back({.answer = ended.answer->ToDraft(), .is_cut = ended.is_cut});
  if (is_pair) {
    const auto place = std::ranges::find(tiers, ended.tier) - tiers.begin();
    job.watched = job.is_recorded ? static_cast<size_t>(place) : 0;
  }
  std::lock_guard lock(mutex_);
  if (is_closed_) return;
  ++policy.in_flight;
  if (policy.in_flight > entry.shadow->max_in_flight) return Lose(job, /*has_failed=*/false);
  offered_.push_back(std::move(job));
}

void Shadows::Housekeep(DispatchState& state) {
  std::vector<Job> offered;
  std::vector<std::shared_ptr<CancelSlot>> in_the_way;
  {
    std::lock_guard lock(mutex_);
    offered.swap(offered_);
    for (const auto& [id, running] : running_) {
      if (parts_.admission.queued(running.tier) > 0) in_the_way.push_back(running.slot);
    }
    for (const auto& [entry, policy] : watched_)
      parts_.recorder.OnAgreement(entry->id, policy.window.agreement(), policy.has_drifted);
  }
  for (const auto& slot : in_the_way) slot->Cancel();
  for (Job& job : offered) {
    if (job.left.empty()) {
      Finish(job);
    } else if (!Begin(state, job).ok()) {
      std::lock_guard lock(mutex_);
      Lose(job, /*has_failed=*/false);
    }
  }
}

// What the tier's tokenizer has to make anew is kept small. Which prompts are known tells who was asked for
// the client's answer: what is recorded must not depend on that, so with several tokenizers each counts.
StatusOr<PromptPtr> Shadows::PromptOf(const Job& job, const ClusterView& view, const TierView& tier) {
  const auto known = std::ranges::find(job.prompts, tier.text_digest, &EncodedPrompt::text_digest);
  const bool is_free =
      known != job.prompts.end() && (!job.is_recorded || SpeakAlike(view, job.policy->entry.tiers));
  size_t bytes = is_free ? 0 : TextBytes(*job.request);
  if (!job.said.empty()) bytes += BytesToEncode(job.said.back().answer, tier.text_digest);
  RETURN_IF_ERROR(CheckBytes(bytes));
  if (known == job.prompts.end()) return EncodeInput(job.request, tier);
  RETURN_IF_ERROR(CheckTokenIds(*job.request, tier));
  return known->prompt;
}

Status Shadows::Begin(DispatchState& state, Job& job) {
  const size_t tier_index = job.left.front();
  const Request& request = *job.request;
  if (parts_.admission.queued(tier_index) > 0 || parts_.admission.saturation(tier_index) >= kMostSaturation)
    return InTheWay();
  const auto view = parts_.cluster.View();
  const TierView& tier = view->tiers[tier_index];
  if (tier.text == nullptr) return NoCapacity(tier);
  ASSIGN_OR_RETURN(const PromptPtr prompt, PromptOf(job, *view, tier));
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
    running_[parts.id] = {.tier = tier_index,
                          .slot = slot,
                          .replica = replica.id,
                          .instance = replica.description.instance,
                          .fingerprint = fingerprint};
  }
  std::vector<TokenId> draft;
  if (!job.said.empty()) draft = EncodeDraft(job.said.back().answer, tier);
  ExecuteSpec spec = MakeSpec(request, replica, prompt, draft, parts_.clock.Now());
  const uint32_t room = tier.context_length - prompt_tokens;
  if (!job.is_recorded) {
    spec.max_tokens = MostTokens(request, draft.size(), room);
  } else {  // all of its own answer
    spec.max_tokens = request.max_tokens() == 0 ? room : request.max_tokens();
    spec.signals = true;
  }
  const auto call = std::make_shared<Call>(std::move(parts), tier, prompt, std::move(job), std::move(draft));
  const auto client = replica.client;
  slot->Set(client->Execute(spec, call));
  return {};
}

void Shadows::OnDone(uint64_t id, CallObserver& observer, WorkerDeath death, CallEnd end) {
  std::lock_guard lock(mutex_);
  if (is_closed_) return;  // the observer's cluster may be gone too
  const Running call = std::move(running_.extract(id).mapped());
  const bool gave_way = end.status.code() == StatusCode::kCancelled;
  if (!gave_way) observer.OnCallEnd(end.status);
  death.silent = SilentProcess(call.instance, end.status);
  if (IsWorkerDeath(parts_, call.tier, call.replica, end.status, death.had_begun) &&
      quarantine_.OnDeath(call.fingerprint, death, BackAt(parts_)) == Blame::kRequest) {
    RecordQuarantined(parts_, call.tier, *end.job.request);
  }
  if (!end.status.ok()) return Lose(end.job, !gave_way);
  if (end.job.is_recorded) return offered_.push_back(std::move(end.job));
  --end.job.policy->in_flight;
  Compare(*end.job.policy, end.agreement);
}

// With mutex_ held.
void Shadows::Lose(const Job& job, bool has_failed) {
  --job.policy->in_flight;
  const std::string& policy = job.policy->entry.id;
  using OfPair = Recorder::ShadowResult;
  using OfRecord = Recorder::RecordResult;
  if (job.watched.has_value())
    parts_.recorder.OnShadow(policy, has_failed ? OfPair::kFailed : OfPair::kDropped);
  if (job.is_recorded) parts_.recorder.OnRecord(policy, has_failed ? OfRecord::kFailed : OfRecord::kDropped);
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

// Of each but the last with the last.
StatusOr<std::vector<double>> Shadows::AgreementsOf(const Job& job) {
  const Said& last = job.said.back();
  const TierView in_tokens_of{
      .text = last.answer.text, .text_digest = last.answer.text_digest, .vocab_size = last.vocab_size};
  std::vector<double> out;
  for (const Said& each : std::span(job.said).first(job.said.size() - 1)) {
    RETURN_IF_ERROR(CheckBytes(BytesToEncode(each.answer, last.answer.text_digest)));
    out.push_back(HowFarTheyAgree(job.request, {each.answer, each.is_cut},
                                  EncodeDraft(each.answer, in_tokens_of), {last.answer, last.is_cut}));
  }
  return out;
}

// All tiers have answered.
void Shadows::Finish(const Job& job) {
  const StatusOr<std::vector<double>> agreements = AgreementsOf(job);
  {
    std::lock_guard lock(mutex_);
    if (!agreements.ok()) return Lose(job, /*has_failed=*/false);
    --job.policy->in_flight;
    if (job.watched.has_value()) Compare(*job.policy, (*agreements)[*job.watched]);
  }
  Write(job, *agreements);
}

void Shadows::Write(const Job& job, const std::vector<double>& agreements) {
  Watched& policy = *job.policy;
  Record record{.task = kRecordedTask, .prompt = TraitsOf(job.request->input())};
  std::vector<RecordedTier> tiers;
  for (const Said& each : job.said) {
    if (!each.record.is_recordable())
      return parts_.recorder.OnRecord(policy.entry.id, Recorder::RecordResult::kFailed);
    const size_t place = tiers.size();
    tiers.push_back(each.tier);
    record.answers.push_back(each.record);
    record.answers.back().is_right =
        place == agreements.size() || agreements[place] >= policy.entry.shadow->min_agreement;
  }
  OnWritten(policy, policy.takes_records ? policy.records->Append(tiers, std::move(record))
                                         : FailedPrecondition("no more are taken"));
}

void Shadows::OnWritten(Watched& policy, const Status& status) {
  using enum Recorder::RecordResult;
  const bool is_over =
      status.code() == StatusCode::kFailedPrecondition || status.code() == StatusCode::kResourceExhausted;
  const bool is_unwritten = !status.ok() && !is_over;
  parts_.recorder.OnRecord(policy.entry.id, status.ok() ? kWritten : is_over ? kRefused : kUnwritten);
  if (is_over && policy.takes_records.exchange(false)) {
    Log(status.code() == StatusCode::kResourceExhausted ? LogLevel::kInfo : LogLevel::kError,
        "shadow_records_ended", {{"policy", policy.entry.id}, {"error", Message(status)}});
  }
  if (is_unwritten && !policy.is_unwritten) {
    Log(LogLevel::kError, "shadow_record_unwritten",
        {{"policy", policy.entry.id}, {"error", Message(status)}});
  }
  policy.is_unwritten = is_unwritten;
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
