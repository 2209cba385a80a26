// All answers to one request, each a Generation: starts them, passes their pieces to the sink one at a time,
// keeps those that must be ranked until all are over, and ends the request with the last. An answer that
// fails ends the others. While the sink is full no answer's call reads on. Kept alive by its generations; no
// thread of its own. Thread-safe.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "router/dispatch/shared_request.h"

namespace terrace {

class Generation;

// What is known of one answer at its end.
struct AnswerRecord {
  Status status = {};
  AnswerSummary summary = {};
  bool has_first_token = false;
  double queue_seconds = -1;  // negative: it never reached a worker
};

class Answers : public std::enable_shared_from_this<Answers> {
 public:
  Answers(std::shared_ptr<SharedRequest> shared, Admission::Ticket ticket, std::shared_ptr<AnswerSink> sink);

  void Start();   // once
  void Cancel();  // takes no lock that a sink is called under

  // For the generations. `draw` counts the answers drawn from 0; draw 0 is the one that scores the prompt.
  bool is_closed() const { return sink_->is_closed(); }
  bool is_full() const { return sink_->is_full(); }  // then all of them pause
  // Of a cancelled generation: the client is gone, another answer's error, or the router's end.
  Status CancelReason() const;
  void OnPromptTokens(std::vector<AnswerToken> tokens);
  void OnPiece(uint32_t draw, AnswerPiece piece);
  void OnFirstToken() { ticket_.OnFirstToken(); }  // of the first tier asked
  void OnNextTier(size_t from, size_t to) { ticket_.Move(from, to); }
  // Once each; `tier` was the last one asked, `record` is of this draw alone.
  void OnEnd(uint32_t draw, size_t tier, AnswerRecord record);

 private:
  struct Draw {
    AnswerRecord record = {};
    AnswerPiece held = {};  // all of it, when answers are ranked
  };

  Draw& At(uint32_t draw);  // with mutex_ held
  void CancelAllBut(uint32_t draw);
  void Resume();
  void SendBest();
  void Finish();

  const std::shared_ptr<SharedRequest> shared_;
  const RequestPtr request_;
  const std::shared_ptr<AnswerSink> sink_;
  Admission::Ticket ticket_;                            // given back at the end
  std::vector<std::weak_ptr<Generation>> generations_;  // by draw; not changed after Start
  mutable std::mutex mutex_;                            // held while the sink is called
  std::vector<Draw> draws_;                             // GUARDED_BY(mutex_): by draw; empty until At
  std::vector<AnswerToken> prompt_tokens_;              // GUARDED_BY(mutex_): held like the answers
  size_t running_ = 0;                                  // GUARDED_BY(mutex_)
  Status failure_;                                      // GUARDED_BY(mutex_): the first one
};

}  // namespace terrace
