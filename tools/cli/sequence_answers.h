// All answers to one request from one model, in this process or in a worker: a TokenSink for each sequence,
// whose tokens become pieces; keeps what must be ranked until all are over. What a router's dispatcher does,
// without tiers. Shared by whoever runs the sequences and the caller; the former calls the sinks, Close and
// Fail may come from any thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "text/text_assets.h"
#include "text/tokenizer.h"
#include "tools/cli/answerer.h"
#include "worker/engine/sequence.h"

namespace terrace {

// The sequence of a request's first answer. INVALID_ARGUMENT for a request that no router would take; what an
// engine checks itself is left to it. A seed is drawn where none is given.
StatusOr<SequenceSpec> FirstSequence(const v1::GenerateRequest& request, const TextAssets& text,
                                     uint32_t context_length);

class SequenceAnswers : public std::enable_shared_from_this<SequenceAnswers> {
 public:
  // `name` is the model's, shown as the tier.
  SequenceAnswers(std::shared_ptr<const Tokenizer> tokenizer, v1::GenerateRequest request, std::string name,
                  OnAnswerPiece on_piece);

  uint32_t draws() const { return std::max(request_.best_of(), ChoicesOf(request_)); }
  // Gives `run` a sequence and its sink for each draw, until it fails. They differ in their seeds, and the
  // first one scores the prompt, if that is wanted.
  using Run = std::function<Status(SequenceSpec spec, std::shared_ptr<TokenSink> sink)>;
  Status Start(const SequenceSpec& first, const Run& run);
  void Close() { is_closed_ = true; }  // whoever runs the sequences drops them
  void Fail(const Status& error);      // reports it, unless all is said, and closes

 private:
  class Sink;

  bool is_ranked() const { return draws() > ChoicesOf(request_); }
  void OnPiece(uint32_t draw, v1::GenerateResponse piece);
  void OnEnd(uint32_t draw, v1::GenerateFinished finished);
  void SendBest();
  void Send(uint32_t choice, v1::GenerateResponse piece);

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const v1::GenerateRequest request_;
  const std::string name_;
  const OnAnswerPiece on_piece_;
  const MonoTime start_ = RealClock().Now();
  std::atomic<bool> is_closed_ = false;
  std::mutex mutex_;          // held while on_piece_ is called
  std::vector<Answer> held_;  // GUARDED_BY(mutex_): by draw, when answers are ranked
  uint32_t running_;          // GUARDED_BY(mutex_)
  bool is_over_ = false;      // GUARDED_BY(mutex_): the last piece has been sent
};

}  // namespace terrace
