// All answers to one request from a model in this process: a TokenSink for each sequence, whose tokens become
// pieces; keeps what must be ranked until all are over. What a router's dispatcher does, without tiers.
// Shared by the engine and the caller; the engine's thread calls the sinks, Close and Fail may come from any.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "text/tokenizer.h"
#include "tools/cli/answerer.h"
#include "worker/engine/sequence.h"

namespace terrace {

class LocalAnswers : public std::enable_shared_from_this<LocalAnswers> {
 public:
  // `tokenizer` outlives this object; `name` is the model's, shown as the tier.
  LocalAnswers(const Tokenizer& tokenizer, v1::GenerateRequest request, std::string name,
               OnAnswerPiece on_piece);

  uint32_t draws() const { return std::max(request_.best_of(), ChoicesOf(request_)); }
  std::shared_ptr<TokenSink> MakeSink(uint32_t draw, const std::vector<TokenId>& prompt);  // once each
  void Close() { is_closed_ = true; }  // the engine drops the sequences
  void Fail(const Status& error);      // reports it, unless all is said, and closes

 private:
  class Sink;

  bool is_ranked() const { return draws() > ChoicesOf(request_); }
  void OnPiece(uint32_t draw, v1::GenerateResponse piece);
  void OnEnd(uint32_t draw, v1::GenerateFinished finished);
  void SendBest();
  void Send(uint32_t choice, v1::GenerateResponse piece);

  const Tokenizer& tokenizer_;
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
