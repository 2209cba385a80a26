#include "worker/server/remote_drafter.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/clock.h"
#include "base/grpc_status.h"
#include "base/log.h"
#include "proto/terrace/v1/worker.pb.h"
#include "worker/server/proto_convert.h"

namespace terrace {
namespace {

// Tokens of one message, unless one sequence alone has more; and of a sequence that drafts are asked for.
constexpr size_t kMostMessageTokens = size_t{1} << 16, kMostTokens = size_t{1} << 20;
// Tokens of a draft that are kept; more have not been asked for.
constexpr size_t kMostDraft = 256;

// Behind the last known token: the draft that is being verified, the token that comes with it, and the next
// draft.
uint32_t AheadFor(uint32_t most) { return 2 * most + 1; }

bool IsRefusal(const Status& end) {
  return end.code() == StatusCode::kFailedPrecondition || end.code() == StatusCode::kUnimplemented;
}

}  // namespace

// One stream. Owns itself until OnDone. There is always a read under way, so that gRPC keeps the call while
// the engine's thread writes.
class RemoteDrafter::Call : public grpc::ClientBidiReactor<v1::ProposeRequest, v1::ProposeResponse> {
 public:
  explicit Call(RemoteDrafter& owner) : owner_(owner) {}

  void Start(v1::Drafts::Stub& stub) {
    stub.async()->Propose(&context_, this);
    StartRead(&response_);
    StartWrite(&request);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return owner_.OnStreamOver();
    owner_.OnResponse(response_);
    StartRead(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (ok) owner_.OnWritten();  // else the read says so too
  }
  void OnDone(const grpc::Status& status) override {
    const Status end = FromGrpcStatus(status, context_);
    RemoteDrafter& owner = owner_;
    // The context holds the channel, which a thread of gRPC's must not be the last to drop: gRPC 1.51 joins
    // those threads there.
    delete this;
    owner.OnDone(end);
  }

  v1::ProposeRequest request;  // the owner's, but while it is written

 private:
  RemoteDrafter& owner_;
  grpc::ClientContext context_;
  v1::ProposeResponse response_;
};

RemoteDrafter::RemoteDrafter(Options options, WorkerMetrics& metrics)
    : options_(std::move(options)),
      metrics_(metrics),
      stub_(v1::Drafts::NewStub(options_.channel)),
      wait_(options_.first_wait) {
  std::lock_guard lock(mutex_);
  SetState(RemoteDrafterState::kConnecting);
  Connect();
}

RemoteDrafter::~RemoteDrafter() {
  std::unique_lock lock(mutex_);
  is_stopped_ = true;
  if (call_ != nullptr) call_->Cancel();
  if (is_armed_) alarm_->Cancel();
  idle_.wait(lock, [this] { return !has_call_ && !is_armed_; });
}

RemoteDrafterState RemoteDrafter::state() const {
  std::lock_guard lock(mutex_);
  return state_;
}

std::optional<uint32_t> RemoteDrafter::MissingTokens(const DraftRequest& request) const {
  std::lock_guard lock(mutex_);
  if (!is_connected() || request.tokens.size() > kMostTokens) return std::nullopt;
  const auto found = sequences_.find(request.id);
  if (found != sequences_.end() && found->second.is_over) return std::nullopt;
  return 0;
}

StatusOr<Drafts> RemoteDrafter::Propose(std::span<const DraftRequest> requests) {
  Drafts drafts;
  drafts.tokens.resize(requests.size());
  RemoteTokens counted;
  {
    std::lock_guard lock(mutex_);
    if (!is_connected()) return drafts;
    for (size_t i = 0; i < requests.size(); ++i) {
      Sequence& sequence = sequences_[requests[i].id];
      Follow(sequence, requests[i].tokens, counted);
      drafts.tokens[i] = Offer(sequence, requests[i], counted);
    }
    if (!is_writing_) {  // else with the next call
      AddNews(requests);
      Write();
    }
  }
  metrics_.OnRemoteTokens(counted);
  return drafts;
}

void RemoteDrafter::Forget(uint64_t id) {
  std::lock_guard lock(mutex_);
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  if (found->second.sent > 0) ended_.push_back(id);
  sequences_.erase(found);
  if (is_connected() && !is_writing_) Write();
}

// The answer has `tokens` now: those of the draft that it has got leave the draft. Where it has others
// drafting begins anew; so it does where the answer is ahead of the draft and was not less so at the last
// call, as who drafts would not catch up.
void RemoteDrafter::Follow(Sequence& sequence, std::span<const int32_t> tokens, RemoteTokens& counted) {
  std::vector<int32_t>& draft = sequence.draft;
  const uint64_t known = tokens.size(), end = sequence.begin + draft.size();
  uint64_t agreed = sequence.begin;
  while (agreed < std::min(end, known) && draft[agreed - sequence.begin] == tokens[agreed]) ++agreed;
  const auto count = [&](uint64_t from, uint64_t to) {  // of those that were not offered
    return to - std::min(to, std::max(from, sequence.offered));
  };
  counted.late += count(sequence.begin, agreed);
  const bool is_wrong = agreed < std::min(end, known);
  const uint64_t behind = sequence.has_draft ? known - std::min(known, end) : 0;
  const bool was_behind = sequence.behind > 0 && known > sequence.known;
  const bool is_lost = was_behind && behind >= sequence.behind;
  sequence.known = known;
  sequence.behind = behind;
  if (!is_wrong && !is_lost) {
    draft.erase(draft.begin(), draft.begin() + static_cast<ptrdiff_t>(agreed - sequence.begin));
    sequence.begin = agreed;
    return;
  }
  counted.dropped += count(agreed, end);
  draft.clear();
  ++sequence.attempt;
  sequence.is_told = sequence.has_draft = false;
  sequence.begin = sequence.offered = known;
  sequence.behind = 0;
}

// What there is of the draft behind the last known token.
std::vector<int32_t> RemoteDrafter::Offer(Sequence& sequence, const DraftRequest& request,
                                          RemoteTokens& counted) {
  const uint64_t known = request.tokens.size();
  if (sequence.begin != known) return {};
  const auto offered = std::span(sequence.draft).first(std::min<size_t>(request.most, sequence.draft.size()));
  const uint64_t end = known + offered.size();
  counted.offered += end - std::min(end, std::max(known, sequence.offered));
  sequence.offered = std::max(sequence.offered, end);
  return {offered.begin(), offered.end()};
}

// What the other worker does not know yet. What makes the message too large comes with the next one.
void RemoteDrafter::AddNews(std::span<const DraftRequest> requests) {
  size_t tokens = 0;
  for (const DraftRequest& request : requests) {
    Sequence& sequence = sequences_.at(request.id);
    const auto fresh = request.tokens.subspan(sequence.sent);
    if (fresh.empty() && sequence.is_told) continue;
    if (tokens > 0 && tokens + fresh.size() > kMostMessageTokens) continue;
    tokens += fresh.size();
    v1::DraftedSequence& news = *call_->request.add_sequences();
    news.set_id(request.id);
    news.set_attempt(sequence.attempt);
    news.set_position(static_cast<uint32_t>(sequence.sent));
    news.mutable_tokens()->Add(fresh.begin(), fresh.end());
    news.set_ahead(AheadFor(request.most));
    if (sequence.sent == 0) {
      v1::DraftedSequenceStart& start = *news.mutable_start();
      start.set_prompt_tokens(request.prompt_tokens);
      ToProto(*request.sampling, *start.mutable_sampling());
      start.set_cache_salt(std::string(request.cache_salt));
    }
    sequence.sent = request.tokens.size();
    sequence.is_told = true;
  }
}

// What is in the call's request, and which sequences have ended.
void RemoteDrafter::Write() {
  v1::ProposeRequest& request = call_->request;
  request.mutable_ended()->Add(ended_.begin(), ended_.end());
  ended_.clear();
  if (request.sequences().empty() && request.ended().empty()) return;
  is_writing_ = true;
  call_->StartWrite(&request);
}

void RemoteDrafter::OnWritten() {
  std::lock_guard lock(mutex_);
  if (call_ == nullptr) return;
  is_writing_ = false;
  call_->request.Clear();
  if (is_connected()) Write();
}

void RemoteDrafter::OnResponse(const v1::ProposeResponse& response) {
  RemoteTokens counted;
  bool is_new = false;
  {
    std::lock_guard lock(mutex_);
    if (state_ != RemoteDrafterState::kConnected) {
      SetState(RemoteDrafterState::kConnected);
      wait_ = options_.first_wait;
      last_end_.reset();
      is_new = true;
    }
    for (const v1::Draft& draft : response.drafts()) {
      const auto found = sequences_.find(draft.id());
      const size_t taken = found == sequences_.end() ? 0 : Add(found->second, draft);
      counted.dropped += static_cast<size_t>(draft.tokens_size()) - taken;
    }
  }
  if (is_new)
    Log(LogLevel::kInfo, "worker_drafter_connected", {{"address", options_.address}});  // it may block
  metrics_.OnRemoteTokens(counted);
}

// How many tokens go behind the draft: all, or none of an earlier attempt, or of another place.
size_t RemoteDrafter::Add(Sequence& sequence, const v1::Draft& draft) {
  sequence.is_over = sequence.is_over || draft.is_last();
  if (draft.attempt() != sequence.attempt || draft.tokens().empty()) return 0;
  if (!std::exchange(sequence.has_draft, true)) sequence.begin = draft.position();
  const auto count = static_cast<size_t>(draft.tokens_size());
  const bool fits = draft.position() == sequence.begin + sequence.draft.size() &&
                    sequence.draft.size() + count <= kMostDraft;
  if (!fits) return 0;
  sequence.draft.insert(sequence.draft.end(), draft.tokens().begin(), draft.tokens().end());
  return count;
}

void RemoteDrafter::SetState(RemoteDrafterState state) {
  state_ = state;
  metrics_.OnRemoteDrafter(state);
}

void RemoteDrafter::Connect() {
  call_ = new Call(*this);  // deletes itself in OnDone
  has_call_ = is_writing_ = true;
  v1::DraftsHello& hello = *call_->request.mutable_hello();
  hello.set_protocol(v1::WORKER_PROTOCOL_CURRENT);
  hello.set_tokenizer_digest(options_.tokenizer_digest);
  hello.set_vocab_size(options_.vocab_size);
  call_->Start(*stub_);
}

void RemoteDrafter::ConnectIn(Duration wait) {
  // A new one each time: an alarm must not be set again from its own callback.
  alarm_ = std::make_unique<grpc::Alarm>();
  is_armed_ = true;
  alarm_->Set(WallTimeIn(wait), [this](bool) { OnAlarm(); });
}

void RemoteDrafter::OnAlarm() {
  std::lock_guard lock(mutex_);
  is_armed_ = false;
  if (!is_stopped_) return Connect();
  idle_.notify_all();
}

// Nothing may be written any more.
void RemoteDrafter::OnStreamOver() {
  std::lock_guard lock(mutex_);
  call_ = nullptr;
  sequences_.clear();
  ended_.clear();
}

void RemoteDrafter::OnDone(const Status& end) {
  const bool is_refusal = IsRefusal(end);
  bool is_told = true;
  {
    std::lock_guard lock(mutex_);
    // The other worker may stay away for long: each kind of end is told once.
    is_told = is_stopped_ || std::exchange(last_end_, end.code()) == end.code();
  }
  if (!is_told) {  // without the lock, as it may block; the call is not over yet, so this object lives
    Log(is_refusal ? LogLevel::kError : LogLevel::kWarn,
        is_refusal ? "worker_drafter_refused" : "worker_drafter_lost",
        {{"address", options_.address}, {"error", Message(end)}});
  }
  std::lock_guard lock(mutex_);
  has_call_ = false;
  if (is_stopped_) return idle_.notify_all();
  SetState(is_refusal ? RemoteDrafterState::kRefused : RemoteDrafterState::kConnecting);
  ConnectIn(is_refusal ? options_.longest_wait : wait_);
  wait_ = std::min(2 * wait_, options_.longest_wait);
}

}  // namespace terrace
