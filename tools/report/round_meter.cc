#include "tools/report/round_meter.h"

#include <chrono>
#include <utility>

namespace terrace {
namespace {
constexpr auto kWait = std::chrono::milliseconds(50);  // how late a Ctrl-C may be noticed
}

class RoundMeter::Sink : public TokenSink {
 public:
  explicit Sink(RoundMeter& meter) : meter_(meter) {}

  void OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) override {
    if (!tokens.empty()) meter_.OnTokens(first_index == 0, tokens.size());
  }
  void OnPromptScores(uint32_t, std::span<const SampledToken>) override {}
  void OnFinish(const SequenceResult& result) override { meter_.OnFinish(result); }
  bool is_closed() const override { return false; }
  bool is_full() const override { return !meter_.is_open_; }

 private:
  RoundMeter& meter_;
};

void RoundMeter::Begin(uint32_t sequences) {
  is_open_ = false;
  std::lock_guard lock(mutex_);
  sequences_ = sequences;
  started_ = ended_ = 0;
  step_tokens_ = 0;
  has_started_ = is_whole_ = is_over_ = false;
  times_ = {};
  error_ = {};
}

std::shared_ptr<TokenSink> RoundMeter::MakeSink() { return std::make_shared<Sink>(*this); }

void RoundMeter::Open() {
  std::lock_guard lock(mutex_);
  opened_ = clock_.Now();
  is_open_ = true;
}

void RoundMeter::OnTokens(bool is_first, size_t count) {
  std::lock_guard lock(mutex_);
  if (is_first) ++started_;
  step_tokens_ += count;
}

void RoundMeter::OnFinish(const SequenceResult& result) {
  std::lock_guard lock(mutex_);
  ++ended_;
  if (result.reason == FinishReason::kStop || result.reason == FinishReason::kLength) return;
  error_ = result.error.ok() ? Cancelled("a sequence was cancelled") : result.error;
  changed_.notify_all();
}

void RoundMeter::OnStep() {
  std::lock_guard lock(mutex_);
  const MonoTime now = clock_.Now();
  if (is_whole_) {
    times_.decode_tokens += step_tokens_;
    times_.decode_seconds += Seconds(now - last_step_);
  } else if (!has_started_ && started_ == sequences_) {
    has_started_ = true;
    times_.prefill_seconds = Seconds(now - opened_);
  }
  is_whole_ = has_started_ && ended_ == 0;
  is_over_ = ended_ == sequences_;
  step_tokens_ = 0;
  last_step_ = now;
  if (is_over_) changed_.notify_all();
}

StatusOr<RoundTimes> RoundMeter::Await(const std::function<bool()>& is_cancelled) {
  std::unique_lock lock(mutex_);
  while (!is_over_ && error_.ok()) {
    if (is_cancelled && is_cancelled()) return Cancelled("interrupted");
    changed_.wait_for(lock, kWait);
  }
  RETURN_IF_ERROR(error_);
  return times_;
}

StatusOr<RoundTimes> RoundMeter::Run(Engine& engine, std::vector<std::vector<TokenId>> prompts,
                                     uint32_t answer_tokens, const std::function<bool()>& is_cancelled) {
  if (is_cancelled && is_cancelled()) return Cancelled("interrupted");
  Begin(static_cast<uint32_t>(prompts.size()));
  for (std::vector<TokenId>& prompt : prompts) {
    SequenceSpec spec;
    spec.prompt = std::move(prompt);
    spec.max_tokens = answer_tokens;
    spec.ignore_eos = true;
    spec.sampling.temperature = 0;
    RETURN_IF_ERROR(engine.Submit(std::move(spec), MakeSink()));
  }
  Open();
  engine.Wake();
  return Await(is_cancelled);
}

}  // namespace terrace
