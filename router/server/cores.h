// The core that answers new requests, and the old ones that still have some. Thread-safe.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "router/dispatch/attempts.h"
#include "router/dispatch/late_cancel.h"
#include "router/server/core.h"
#include "router/server/text_pool.h"

namespace terrace {

class Cores {
 public:
  using CorePtr = std::shared_ptr<Core>;

  CorePtr Current() const {
    std::lock_guard lock(mutex_);
    return current_;
  }
  void Replace(CorePtr core) {
    std::lock_guard lock(mutex_);
    if (current_ != nullptr) old_.push_back(std::move(current_));
    current_ = std::move(core);
  }
  // One that is not used after all.
  void Retire(CorePtr core) {
    std::lock_guard lock(mutex_);
    old_.push_back(std::move(core));
  }
  std::vector<CorePtr> All() const {
    std::lock_guard lock(mutex_);
    std::vector<CorePtr> all = old_;
    if (current_ != nullptr) all.push_back(current_);
    return all;
  }
  // Old cores without requests that nobody is about to give one: the caller destroys them, outside of locks.
  std::vector<CorePtr> TakeIdle() {
    std::lock_guard lock(mutex_);
    std::vector<CorePtr> idle;
    std::erase_if(old_, [&](CorePtr& core) {
      if (core.use_count() > 1 || core->admission().in_flight() > 0) return false;
      idle.push_back(std::move(core));
      return true;
    });
    return idle;
  }
  size_t in_flight() const {
    size_t sum = 0;
    for (const CorePtr& core : All()) sum += core->admission().in_flight();
    return sum;
  }

 private:
  mutable std::mutex mutex_;
  CorePtr current_;           // GUARDED_BY(mutex_)
  std::vector<CorePtr> old_;  // GUARDED_BY(mutex_)
};

// Gives each request to the core that is current when it comes; those with much text by way of `pool`.
class CurrentDispatcher : public Dispatcher {
 public:
  CurrentDispatcher(const Cores& cores, TextPool& pool) : cores_(cores), pool_(pool) {}

  CancelCall Generate(RequestPtr request, std::shared_ptr<AnswerSink> sink) override {
    return Run(
        request, [sink](Dispatcher& to, const RequestPtr& what) { return to.Generate(what, sink); },
        [sink](const Status& status) { sink->OnFinish(status); });
  }
  CancelCall Score(RequestPtr request, OnScore on_score) override {
    return Run(
        request, [on_score](Dispatcher& to, const RequestPtr& what) { return to.Score(what, on_score); },
        [on_score](const Status& status) { on_score(status); });
  }
  CancelCall Tokenize(RequestPtr request, bool with_bytes, OnTokenized on_tokenized) override {
    const auto start = [with_bytes, on_tokenized](Dispatcher& to, const RequestPtr& what) {
      return to.Tokenize(what, with_bytes, on_tokenized);
    };
    return Run(request, start, [on_tokenized](const Status& status) { on_tokenized(status); });
  }
  CancelCall Detokenize(RequestPtr request, OnText on_text) override {
    const auto start = [on_text](Dispatcher& to, const RequestPtr& what) {
      return to.Detokenize(what, on_text);
    };
    return Run(request, start, [on_text](const Status& status) { on_text(status); });
  }
  std::vector<ModelInfo> ListModels(const Tenant& tenant) const override {
    return cores_.Current()->dispatcher().ListModels(tenant);
  }
  void RecordRefused(const RefusedRequest& refused) override {
    cores_.Current()->dispatcher().RecordRefused(refused);
  }

 private:
  static constexpr size_t kLongBytes = 16 << 10;  // of text: shorter ones cost less than handing them over
  static constexpr size_t kLongTokens = kLongBytes / 4;
  static constexpr size_t kMessageBytes = 64;  // that a message costs like, whatever is in it

  static bool IsLong(const Request& request) {
    if (const auto* tokens = std::get_if<std::vector<TokenId>>(&request.input()))
      return request.api() == ApiKind::kTokenize && tokens->size() >= kLongTokens;  // whose text is wanted
    const auto* chat = std::get_if<std::vector<ChatMessage>>(&request.input());
    const size_t messages = chat == nullptr ? 1 : chat->size();
    return TextBytes(request) + messages * kMessageBytes >= kLongBytes;
  }

  template <typename Start, typename Refuse>
  CancelCall Run(const RequestPtr& request, Start start, Refuse refuse) {
    const auto core = cores_.Current();
    if (!IsLong(*request) || TextPool::IsOnThread()) return Guard(core, start(core->dispatcher(), request));
    const auto cancel = std::make_shared<LateCancel>();
    const bool is_taken = pool_.Post(request->tenant()->name, [core, request, start, refuse, cancel] {
      if (!cancel->is_cancelled()) return cancel->Set(Guard(core, start(core->dispatcher(), request)));
      core->dispatcher().RecordRefused(RefusedRequest::Of(*request, ClientGone()));
      refuse(ClientGone());
    });
    if (!is_taken) {
      const Status full = TooManyTexts();
      RecordRefused(RefusedRequest::Of(*request, full));
      refuse(full);
    }
    return [cancel] { cancel->Cancel(); };
  }

  // A call that is over may be cancelled when its core is gone.
  static CancelCall Guard(const std::weak_ptr<Core>& core, CancelCall cancel) {
    return [core, cancel = std::move(cancel)] {
      if (const auto alive = core.lock()) cancel();
    };
  }

  const Cores& cores_;
  TextPool& pool_;
};

}  // namespace terrace
