#include "router/api/prompt_list.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "router/dispatch/late_cancel.h"
#include "router/request/param.h"

namespace terrace {
namespace {

// The end, the tier and its reason stay those of the first.
void Add(const AnswerSummary& from, AnswerSummary& to) {
  AddCosts(from, to);
  to.time_to_first_token_seconds = std::min(to.time_to_first_token_seconds, from.time_to_first_token_seconds);
  to.total_seconds = std::max(to.total_seconds, from.total_seconds);
}

// Kept alive by its parts, which are the sinks of the prompts. Thread-safe.
class PromptList : public std::enable_shared_from_this<PromptList> {
 public:
  PromptList(size_t prompts, uint32_t choices, std::shared_ptr<ReplySink> sink)
      : choices_(choices), sink_(std::move(sink)), cancels_(prompts), on_room_(prompts), totals_(prompts) {}

  void Start(Dispatcher& dispatcher, std::span<const RequestPtr> requests) {
    sink_->OnRoom([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->Resume();
    });
    for (size_t prompt = 0; prompt < requests.size() && BeginPrompt(); ++prompt) {
      const auto part = std::make_shared<Part>(shared_from_this(), prompt);
      cancels_[prompt].Set(dispatcher.Generate(requests[prompt], part));
    }
    EndPrompt();  // what Start itself counts as
  }

  void Cancel() {  // takes no lock that the sink is called under
    for (LateCancel& cancel : cancels_) cancel.Cancel();
  }

 private:
  class Part : public AnswerSink {
   public:
    Part(std::shared_ptr<PromptList> owner, size_t prompt) : owner_(std::move(owner)), prompt_(prompt) {}

    void OnPromptTokens(std::vector<AnswerToken> tokens) override {
      owner_->Tell([&](ReplySink& sink) { sink.OnTokensOfPrompt(prompt_, std::move(tokens)); });
    }
    void OnPiece(AnswerPiece piece) override {
      piece.choice += first_choice();
      owner_->Tell([&](ReplySink& sink) { sink.OnPiece(std::move(piece)); });
    }
    void OnChoiceEnd(uint32_t choice, const AnswerSummary& summary) override {
      const AnswerSummary numbered = Numbered(summary);
      owner_->Tell([&](ReplySink& sink) { sink.OnChoiceEnd(first_choice() + choice, numbered); });
    }
    void OnFinish(StatusOr<AnswerSummary> total) override {
      if (total.ok()) {
        owner_->OnTotal(prompt_, Numbered(*total));
      } else {
        owner_->OnFailure(OfPrompt(total.status(), prompt_));
      }
      owner_->EndPrompt();
    }
    bool is_closed() const override { return owner_->sink_->is_closed(); }
    bool is_too_slow() const override { return owner_->sink_->is_too_slow(); }
    bool is_full() const override { return owner_->sink_->is_full(); }
    void OnRoom(std::function<void()> on_room) override { owner_->SetOnRoom(prompt_, std::move(on_room)); }

   private:
    uint32_t first_choice() const { return static_cast<uint32_t>(prompt_) * owner_->choices_; }
    AnswerSummary Numbered(AnswerSummary summary) const {
      for (AnswerAttempt& attempt : summary.attempts) attempt.choice += first_choice();
      return summary;
    }

    const std::shared_ptr<PromptList> owner_;
    const size_t prompt_;
  };

  // False when nothing more should begin.
  bool BeginPrompt() {
    std::lock_guard lock(mutex_);
    if (!failure_.ok()) return false;
    ++running_;
    return true;
  }

  // Of what has failed already nothing more is told.
  template <typename What>
  void Tell(const What& what) {
    std::lock_guard lock(mutex_);
    if (failure_.ok()) what(*sink_);
  }

  void OnTotal(size_t prompt, AnswerSummary total) {
    std::lock_guard lock(mutex_);
    totals_[prompt] = std::move(total);
  }

  void OnFailure(const Status& error) {
    {
      std::lock_guard lock(mutex_);
      if (!failure_.ok()) return;
      failure_ = error;
    }
    Cancel();
  }

  void EndPrompt() {
    {
      std::lock_guard lock(mutex_);
      if (--running_ > 0) return;
    }
    // Nobody else is left.
    if (!failure_.ok()) return sink_->OnFinish(failure_);
    AnswerSummary sum = std::move(totals_.front());
    for (size_t prompt = 1; prompt < totals_.size(); ++prompt) Add(totals_[prompt], sum);
    sink_->OnFinish(std::move(sum));
  }

  void SetOnRoom(size_t prompt, std::function<void()> on_room) {
    std::lock_guard lock(mutex_);
    on_room_[prompt] = std::move(on_room);
  }

  void Resume() {
    std::vector<std::function<void()>> all;
    {
      std::lock_guard lock(mutex_);
      all = on_room_;
    }
    for (const auto& on_room : all) {
      if (on_room) on_room();
    }
  }

  const uint32_t choices_;  // of each prompt
  const std::shared_ptr<ReplySink> sink_;
  std::deque<LateCancel> cancels_;              // by prompt
  std::mutex mutex_;                            // held while the sink is called, but for its end
  std::vector<std::function<void()>> on_room_;  // GUARDED_BY(mutex_): by prompt
  std::vector<AnswerSummary> totals_;           // GUARDED_BY(mutex_): by prompt
  size_t running_ = 1;                          // GUARDED_BY(mutex_): prompts, and Start
  Status failure_;                              // GUARDED_BY(mutex_): the first one
};

}  // namespace

Dispatcher::CancelCall GenerateAll(Dispatcher& dispatcher, std::span<const RequestPtr> requests,
                                   std::shared_ptr<ReplySink> sink) {
  const auto list =
      std::make_shared<PromptList>(requests.size(), requests.front()->choices(), std::move(sink));
  list->Start(dispatcher, requests);
  return [weak = std::weak_ptr(list)] {
    if (const auto running = weak.lock()) running->Cancel();
  };
}

Status OfPrompt(const Status& error, size_t prompt) {
  const std::string param = Param(error);
  if (param != "prompt" && !param.starts_with("prompt[")) return error;
  return WithParam(error, Concat("prompt[", prompt, "]"));
}

}  // namespace terrace
