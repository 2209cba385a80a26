#include "worker/server/draft_service.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/grpc_status.h"
#include "grpcpp/alarm.h"
#include "proto/terrace/v1/worker.pb.h"
#include "worker/server/proto_convert.h"

namespace terrace {
namespace {

constexpr int32_t kLowestPriority = -100;
constexpr uint32_t kMostAhead = 256;  // tokens
// Drafted tokens that may wait for a caller to read; more are lost to it.
constexpr size_t kMostUnread = size_t{1} << 16;

Status Draining() { return WithReason(Unavailable("the worker is draining; no drafts"), "draining"); }

}  // namespace

// One stream: its sequences, as far as they are known, and the writer of its drafts. Kept alive by itself
// until gRPC is done with it, and by the engine until its runs have ended.
class DraftService::Stream : public grpc::ServerBidiReactor<v1::ProposeRequest, v1::ProposeResponse> {
 public:
  Stream(DraftService& service, grpc::CallbackServerContext& context)
      : service_(service), context_(context) {}

  void Open(std::shared_ptr<Stream> self) {
    const std::chrono::duration<double> patience(service_.options_.hello_seconds);
    hello_alarm_.Set(WallTimeIn(std::chrono::duration_cast<Duration>(patience)),
                     [weak = std::weak_ptr(self)](bool is_due) {
                       if (!is_due) return;  // it was cancelled, perhaps with mutex_ held
                       if (const auto stream = weak.lock()) stream->OnHelloDue();
                     });
    self_ = std::move(self);
    StartRead(&request_);
  }
  void End(const Status& why);  // idempotent

  // Of its runs, on the engine's loop thread.
  void OnDrafted(const Run& run, uint32_t first_index, std::span<const SampledToken> tokens);
  void OnRunEnd(const Run& run, const SequenceResult& result);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override { End(Cancelled("the caller is gone")); }
  void OnDone() override {
    service_.Leave(*this);
    const std::shared_ptr<Stream> self = std::move(self_);  // perhaps the last one
  }

 private:
  struct Sequence {
    std::vector<int32_t> tokens;  // known ones: prompt, then answer
    uint32_t prompt_tokens = 0;
    SamplingParams sampling;
    std::string cache_salt;
    uint32_t attempt = 0;
    std::shared_ptr<Run> run;  // of the attempt; null: there is none, or it has ended
  };
  using Sequences = std::unordered_map<uint64_t, Sequence>;

  void OnHelloDue();

  // All with mutex_ held.
  void EndWith(const Status& why);
  void TakeHello(const v1::DraftsHello& hello);
  void TakeNews(const v1::DraftedSequence& news);
  Status Begin(const v1::DraftedSequenceStart& start, Sequence& sequence);
  Status Extend(const v1::DraftedSequence& news, Sequence& sequence);
  void Draft(Sequences::iterator place, uint32_t ahead);
  Sequences::iterator Find(const Run& run);
  void Erase(Sequences::iterator place);
  void GiveUp(Sequences::iterator place);
  void Continue();

  DraftService& service_;
  grpc::CallbackServerContext& context_;  // gRPC's, until OnDone
  std::shared_ptr<Stream> self_;          // until OnDone
  v1::ProposeRequest request_;            // being read
  grpc::Alarm hello_alarm_;               // who says nothing does not keep a place
  std::mutex mutex_;
  // All GUARDED_BY(mutex_):
  Sequences sequences_;
  size_t held_tokens_ = 0;                          // of sequences_
  v1::ProposeResponse response_, next_;             // being written; to be written after it
  size_t unread_ = 0;                               // tokens in next_
  bool is_accepted_ = false, owes_answer_ = false;  // to the hello
  bool is_writing_ = false, is_finished_ = false;
  std::optional<Status> end_;
};

// The sink of one attempt at a sequence: closed when the attempt is over, full while it is far enough ahead.
// Its places are those of tokens in the answer.
class DraftService::Run : public TokenSink {
 public:
  Run(std::shared_ptr<Stream> stream, uint64_t sequence, size_t known)
      : stream_(std::move(stream)), sequence_(sequence), next_(known), limit_(known) {}

  void OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) override {
    next_ = first_index + tokens.size();
    stream_->OnDrafted(*this, first_index, tokens);
  }
  void OnPromptScores(uint32_t, std::span<const SampledToken>) override {}  // none are asked for
  void OnFinish(const SequenceResult& result) override { stream_->OnRunEnd(*this, result); }
  bool is_closed() const override { return is_closed_; }
  bool is_full() const override { return next_ >= limit_; }

  // The engine is to be woken after these.
  void Close() { is_closed_ = true; }
  void SetLimit(size_t limit) { limit_ = limit; }

  uint64_t sequence() const { return sequence_; }  // its id

 private:
  const std::shared_ptr<Stream> stream_;
  const uint64_t sequence_;
  std::atomic<size_t> next_, limit_;  // the first one that is not drafted, and that is not wanted yet
  std::atomic<bool> is_closed_ = false;
};

void DraftService::Stream::End(const Status& why) {
  std::lock_guard lock(mutex_);
  EndWith(why);
}

void DraftService::Stream::EndWith(const Status& why) {
  if (end_.has_value()) return;
  end_ = why;
  while (!sequences_.empty()) Erase(sequences_.begin());
  service_.engine_.Wake();
  Continue();
}

void DraftService::Stream::OnHelloDue() {
  std::lock_guard lock(mutex_);
  if (!is_accepted_)
    EndWith(DeadlineExceeded("no hello has come in ", service_.options_.hello_seconds, " seconds"));
}

void DraftService::Stream::OnReadDone(bool ok) {
  std::lock_guard lock(mutex_);
  if (!ok) return EndWith({});
  if (end_.has_value()) return;
  if (!is_accepted_) {
    TakeHello(request_.hello());
  } else {
    for (const uint64_t id : request_.ended()) {
      if (const auto place = sequences_.find(id); place != sequences_.end()) Erase(place);
    }
    for (const v1::DraftedSequence& news : request_.sequences()) TakeNews(news);
    service_.engine_.Wake();
  }
  Continue();
  if (!end_.has_value()) StartRead(&request_);
}

void DraftService::Stream::TakeHello(const v1::DraftsHello& hello) {
  const Status fits = service_.CheckHello(hello);
  if (!fits.ok()) return EndWith(fits);
  is_accepted_ = owes_answer_ = true;
  hello_alarm_.Cancel();
}

// What cannot be drafted is given up: nothing is wrong with the others.
void DraftService::Stream::TakeNews(const v1::DraftedSequence& news) {
  const auto [place, is_new] = sequences_.try_emplace(news.id());
  Sequence& sequence = place->second;
  if (is_new && news.position() > 0) {  // it was given up, and the caller does not know yet
    sequences_.erase(place);
    return;
  }
  Status taken = is_new ? Begin(news.start(), sequence) : Status();
  if (taken.ok()) taken = Extend(news, sequence);
  if (!taken.ok()) return GiveUp(place);
  if (sequence.run != nullptr && sequence.attempt != news.attempt()) {
    sequence.run->Close();
    sequence.run = nullptr;
  }
  sequence.attempt = news.attempt();
  Draft(place, std::min(news.ahead(), kMostAhead));
}

Status DraftService::Stream::Begin(const v1::DraftedSequenceStart& start, Sequence& sequence) {
  const size_t most = service_.options_.max_sequences;
  if (sequences_.size() > most) return ResourceExhausted("there are ", most, " sequences already");
  sequence.prompt_tokens = start.prompt_tokens();
  sequence.cache_salt = start.cache_salt();
  ASSIGN_OR_RETURN(sequence.sampling, ToSamplingParams(start.sampling()));
  return {};
}

Status DraftService::Stream::Extend(const v1::DraftedSequence& news, Sequence& sequence) {
  std::vector<int32_t>& tokens = sequence.tokens;
  const size_t most = service_.options_.max_tokens, more = static_cast<size_t>(news.tokens_size());
  if (news.position() != tokens.size()) return InvalidArgument("tokens are lost or come twice");
  if (held_tokens_ + more > most) return ResourceExhausted("sequences have ", most, " tokens already");
  tokens.insert(tokens.end(), news.tokens().begin(), news.tokens().end());
  held_tokens_ += more;
  if (sequence.prompt_tokens <= tokens.size()) return {};
  return InvalidArgument("a prompt of ", sequence.prompt_tokens, " tokens, of which ", tokens.size(),
                         " came");
}

// Goes on `ahead` tokens behind what is known, or begins to.
void DraftService::Stream::Draft(Sequences::iterator place, uint32_t ahead) {
  Sequence& sequence = place->second;
  const size_t known = sequence.tokens.size() - sequence.prompt_tokens;
  if (sequence.run != nullptr) return sequence.run->SetLimit(known + ahead);
  if (service_.running_ >= service_.options_.max_running) return;  // tried again with the next news
  auto run = std::make_shared<Run>(self_, place->first, known);
  run->SetLimit(known + ahead);
  const auto answer = sequence.tokens.begin() + sequence.prompt_tokens;
  SequenceSpec spec;
  spec.request_id = "draft";
  spec.prompt.assign(sequence.tokens.begin(), answer);
  spec.resume.assign(answer, sequence.tokens.end());
  spec.speculation = 0;
  spec.sampling = sequence.sampling;
  spec.ignore_eos = true;  // the caller knows what ends its answer
  spec.priority = kLowestPriority;
  spec.cache_salt = sequence.cache_salt;
  spec.is_background = true;
  const Status submitted = service_.Submit(std::move(spec), run);
  if (submitted.ok()) {
    sequence.run = std::move(run);
  } else if (submitted.code() == StatusCode::kInvalidArgument) {
    GiveUp(place);  // it can never run; else it is tried again with the next news
  }
}

void DraftService::Stream::OnDrafted(const Run& run, uint32_t first_index,
                                     std::span<const SampledToken> tokens) {
  service_.metrics_.OnServedTokens(tokens.size());
  std::lock_guard lock(mutex_);
  const auto place = Find(run);
  if (place == sequences_.end() || unread_ + tokens.size() > kMostUnread) return;
  unread_ += tokens.size();
  v1::Draft& draft = *next_.add_drafts();
  draft.set_id(place->first);
  draft.set_attempt(place->second.attempt);
  draft.set_position(place->second.prompt_tokens + first_index);
  for (const SampledToken& token : tokens) draft.add_tokens(token.token);
  Continue();
}

void DraftService::Stream::OnRunEnd(const Run& run, const SequenceResult& result) {
  --service_.running_;
  std::lock_guard lock(mutex_);
  const auto place = Find(run);
  if (place == sequences_.end()) return;
  place->second.run = nullptr;
  if (result.reason != FinishReason::kCancelled) GiveUp(place);  // an error, or the context is full
  Continue();
}

// The sequence whose attempt the run still is.
DraftService::Stream::Sequences::iterator DraftService::Stream::Find(const Run& run) {
  const auto place = sequences_.find(run.sequence());
  return place != sequences_.end() && place->second.run.get() == &run ? place : sequences_.end();
}

void DraftService::Stream::Erase(Sequences::iterator place) {
  if (place->second.run != nullptr) place->second.run->Close();
  held_tokens_ -= place->second.tokens.size();
  sequences_.erase(place);
}

void DraftService::Stream::GiveUp(Sequences::iterator place) {
  if (unread_ < kMostUnread) {  // else it is lost: what comes for a sequence that was given up is passed over
    ++unread_;
    v1::Draft& last = *next_.add_drafts();
    last.set_id(place->first);
    last.set_is_last(true);
  }
  Erase(place);
}

// Writes what there is, or says the end after it.
void DraftService::Stream::Continue() {
  if (is_writing_ || is_finished_) return;
  if (end_.has_value()) {
    is_finished_ = true;
    SetReasonTrailer(context_, *end_);
    Finish(ToGrpcStatus(*end_));
  } else if (owes_answer_ || !next_.drafts().empty()) {
    owes_answer_ = false;
    is_writing_ = true;
    response_.Swap(&next_);
    next_.Clear();
    unread_ = 0;
    StartWrite(&response_);
  }
}

void DraftService::Stream::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  is_writing_ = false;
  if (!ok) EndWith(Cancelled("the caller is gone"));
  Continue();
}

DraftService::DraftService(Options options, Engine& engine, WorkerMetrics& metrics)
    : options_(std::move(options)), engine_(engine), metrics_(metrics) {}

grpc::ServerBidiReactor<v1::ProposeRequest, v1::ProposeResponse>* DraftService::Propose(
    grpc::CallbackServerContext* context) {
  const auto stream = std::make_shared<Stream>(*this, *context);
  stream->Open(stream);
  if (const Status entered = Enter(*stream); !entered.ok()) stream->End(entered);
  return stream.get();
}

void DraftService::Stop() {
  std::lock_guard lock(mutex_);
  has_stopped_ = true;
  for (Stream* const stream : streams_) stream->End(Draining());
}

Status DraftService::Enter(Stream& stream) {
  std::lock_guard lock(mutex_);
  if (has_stopped_) return Draining();
  if (streams_.size() >= options_.max_streams) {
    return WithReason(
        ResourceExhausted(streams_.size(), " workers are drafted for, limit ", options_.max_streams),
        "overloaded");
  }
  streams_.insert(&stream);
  metrics_.OnServedStreams(streams_.size());
  return {};
}

void DraftService::Leave(Stream& stream) {
  std::lock_guard lock(mutex_);
  streams_.erase(&stream);
  metrics_.OnServedStreams(streams_.size());
}

Status DraftService::CheckHello(const v1::DraftsHello& hello) const {
  if (hello.protocol() != v1::WORKER_PROTOCOL_CURRENT) {
    return WithReason(
        FailedPrecondition("the worker that is to draft speaks protocol ",
                           static_cast<int>(v1::WORKER_PROTOCOL_CURRENT), ", the caller ", hello.protocol()),
        "protocol_mismatch");
  }
  const uint32_t vocab_size = engine_.scheduler_options().vocab_size;
  if (hello.tokenizer_digest() == options_.tokenizer_digest && hello.vocab_size() == vocab_size) return {};
  return WithReason(
      FailedPrecondition("the tokenizer of the model that is to draft has the digest ",
                         options_.tokenizer_digest, " and ", vocab_size, " tokens, the caller's ",
                         hello.tokenizer_digest(), " and ", hello.vocab_size(), ": drafts need the same"),
      "tokenizer_mismatch");
}

// RESOURCE_EXHAUSTED where as many run as may; else Engine::Submit's errors.
Status DraftService::Submit(SequenceSpec spec, std::shared_ptr<Run> run) {
  if (running_++ >= options_.max_running) {
    --running_;
    return ResourceExhausted("there are ", options_.max_running, " runs already");
  }
  const Status submitted = engine_.Submit(std::move(spec), std::move(run));
  if (!submitted.ok()) --running_;
  return submitted;
}

}  // namespace terrace
