// A cluster for tests: replicas that record the calls they get; the test plays the worker's part by hand. One
// thread, but each call may have its own, and any may cancel.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "router/cluster/cluster_view.h"

namespace terrace {

// Token i < 256 is byte i; kEnd is the end token, a control token like kCall, the mark of a call.
class ByteTokenizer : public Tokenizer {
 public:
  static constexpr TokenId kEnd = 256, kCall = 257;

  ByteTokenizer() { special_.end = {kEnd}; }
  std::vector<TokenId> Encode(std::string_view text) const override {
    std::vector<TokenId> out;
    for (const char c : text) out.push_back(static_cast<unsigned char>(c));
    return out;
  }
  std::vector<TokenId> Encode(const MarkedText& text) const override { return Encode(text.text); }
  std::string_view TokenBytes(TokenId token, bool with_control) const override {
    if (token == kCall && with_control) return "<tool_call>";
    return token < kEnd ? std::string_view(&bytes_[static_cast<size_t>(token)], 1) : std::string_view();
  }
  bool IsControl(TokenId token) const override { return token >= kEnd; }
  size_t vocab_size() const override { return 258; }
  const SpecialTokens& special() const override { return special_; }
  std::string Serialize() const override { return "bytes"; }

 private:
  const std::string bytes_ = [] {
    std::string out;
    for (int i = 0; i < 256; ++i) out.push_back(static_cast<char>(i));
    return out;
  }();
  SpecialTokens special_;
};

// Text assets of bytes. The template writes the names of the tools and each message's content.
inline std::shared_ptr<const TextAssets> ByteTextWithTools() {
  auto text = std::make_shared<TextAssets>();
  text->tokenizer = std::make_shared<ByteTokenizer>();
  text->chat_template = *ChatTemplate::Parse(
      "{# <tool_call> #}{% for t in tools or [] %}{{ t.function.name }}|{% endfor %}"
      "{% for m in messages %}{{ m.content }}|{% endfor %}{{ '>' if add_generation_prompt }}");
  return text;
}

// One Execute call as a replica got it.
struct FakeCall {
  ExecuteSpec spec = {};
  std::shared_ptr<ExecuteEvents> events = {};
  std::atomic<bool> is_cancelled = false;
  std::atomic<uint32_t> resumed = 0;  // times
  bool is_done = false;
  uint32_t tokens = 0;                               // sent
  uint32_t speculated = 0, accepted_speculated = 0;  // that the worker tells of its own drafts

  void Start(uint32_t cached_tokens) { events->OnStarted(cached_tokens); }
  // Each byte of `text` as one token.
  void SendText(std::string_view text, float logprob = -0.1f) {
    for (const char c : text) SendToken(static_cast<unsigned char>(c), logprob);
  }
  void SendToken(TokenId token, float logprob = -0.1f) { Send({.token = token, .logprob = logprob}); }
  void Send(const WorkerToken& token) {
    ++tokens;
    events->OnTokens({token});
  }
  void Finish(AnswerEnd end = AnswerEnd::kStop, uint32_t cached_tokens = 0) {
    const auto prompt_tokens = static_cast<uint32_t>(spec.prompt->size());
    const auto answer_tokens = static_cast<uint32_t>(spec.resume.size()) + tokens;
    Done(ExecuteResult{
        .end = end, .usage = {prompt_tokens, cached_tokens, answer_tokens, speculated, accepted_speculated}});
  }
  // Tokens of `text`, the end token, the end.
  void Answer(std::string_view text, float logprob = -0.1f) {
    SendText(text, logprob);
    SendToken(ByteTokenizer::kEnd, logprob);
    Finish();
  }
  void Fail(Status status) { Done(std::move(status)); }

 private:
  void Done(StatusOr<ExecuteResult> result) {
    is_done = true;
    std::exchange(events, nullptr)->OnDone(std::move(result));
  }
};

// Keeps how a replica's calls ended.
class FakeObserver : public CallObserver {
 public:
  void OnCallEnd(const Status& status) override {
    std::lock_guard lock(mutex_);
    ends_.push_back(status.code());
  }
  std::vector<StatusCode> ends() const {
    std::lock_guard lock(mutex_);
    return ends_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<StatusCode> ends_;  // GUARDED_BY(mutex_)
};

class FakeReplica : public ReplicaClient {
 public:
  std::shared_ptr<CallHandle> Execute(const ExecuteSpec& spec,
                                      std::shared_ptr<ExecuteEvents> events) override {
    auto call = std::make_shared<FakeCall>();
    call->spec = spec;
    call->events = std::move(events);
    calls.push_back(call);
    return std::make_shared<Handle>(call);
  }

  std::vector<std::shared_ptr<FakeCall>> calls;
  const std::shared_ptr<FakeObserver> observer = std::make_shared<FakeObserver>();

 private:
  class Handle : public CallHandle {
   public:
    explicit Handle(const std::shared_ptr<FakeCall>& call) : call_(call) {}
    void Cancel() override {
      if (const auto call = call_.lock()) call->is_cancelled = true;
    }
    void Resume() override {
      if (const auto call = call_.lock()) ++call->resumed;
    }

   private:
    const std::weak_ptr<FakeCall> call_;  // the call holds its caller, who holds this
  };
};

class FakeCluster : public ClusterSource {
 public:
  struct TierSpec {
    std::string name = {};
    size_t replicas = 1;
    uint32_t context_length = 64;
  };

  explicit FakeCluster(std::span<const TierSpec> tiers) {
    auto text = std::make_shared<TextAssets>();
    text->tokenizer = std::make_shared<ByteTokenizer>();
    auto chat_template = ChatTemplate::Parse("{% for m in messages %}{{ m['content'] }}|{% endfor %}");
    if (chat_template.ok()) text->chat_template = *std::move(chat_template);
    for (const TierSpec& spec : tiers) {
      TierView& tier = view_.tiers.emplace_back();
      tier.name = spec.name;
      tier.text = text;
      tier.text_digest = "bytes";
      tier.vocab_size = 258;
      tier.context_length = spec.context_length;
      tier.model_digest = spec.name + " model";
      tier.prefixes = prefixes_.emplace_back(std::make_shared<PrefixIndex>());
      for (size_t i = 0; i < spec.replicas; ++i) {
        replicas_.push_back(std::make_shared<FakeReplica>());
        tier.replicas.push_back({.id = static_cast<ReplicaId>(replicas_.size() - 1),
                                 .address = spec.name + "-" + std::to_string(i),
                                 .state = ReplicaState::kReady,
                                 .description = {.block_tokens = 16, .kv_layout = "bytes layout"},
                                 .client = replicas_.back(),
                                 .prefix_slot = prefixes_.back()->Add(),
                                 .in_flight = std::make_shared<ReplicaInFlight>(),
                                 .observer = replicas_.back()->observer});
      }
    }
  }

  std::shared_ptr<const ClusterView> View() const override {
    auto view = std::make_shared<ClusterView>(view_);
    for (TierView& tier : view->tiers) tier.FindReady();
    return view;
  }

  TierView& tier(size_t index) { return view_.tiers[index]; }
  FakeReplica& replica(size_t tier, size_t index) { return *replicas_[view_.tiers[tier].replicas[index].id]; }
  // A replica has the whole blocks of `tokens` in its cache.
  void Cache(size_t tier, size_t index, std::span<const TokenId> tokens, const std::string& salt = "") {
    const TierView& in = view_.tiers[tier];
    const ReplicaView& replica = in.replicas[index];
    const BlockKeyScope scope = {
        .model = in.model_digest, .layout = replica.description.kv_layout, .salt = salt};
    std::vector<Hash128> keys;
    ExtendBlockKeys(RootBlockKey(scope), tokens, replica.description.block_tokens, keys);
    PrefixDelta delta{.is_snapshot = true};
    for (const Hash128& key : keys) {
      delta.added.push_back(ShortKey(key));
      delta.digest ^= ShortKey(key);
    }
    CHECK(prefixes_[tier]->Apply(replica.prefix_slot, delta));
  }
  // The latest call of a replica.
  FakeCall& call(size_t tier, size_t index = 0) { return *replica(tier, index).calls.back(); }

 private:
  ClusterView view_;
  std::vector<std::shared_ptr<FakeReplica>> replicas_;  // by id
  std::vector<std::shared_ptr<PrefixIndex>> prefixes_;  // by tier
};

}  // namespace terrace
