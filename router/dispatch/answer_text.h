// The tokens of one answer, turned into text: whole characters, stop strings cut off, each token in the piece
// in which its text ends, calls of the request's tools taken out. Owned by one TierAnswer; one thread at a
// time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "router/cluster/replica_client.h"
#include "router/request/answer.h"
#include "router/request/request.h"
#include "router/tier/answer_signals.h"
#include "text/detokenizer.h"
#include "text/stop_matcher.h"
#include "text/text_assets.h"
#include "text/tool_calls.h"

namespace terrace {

// `token` with its bytes, and at most `top` of its alternatives.
AnswerToken ToAnswerToken(const WorkerToken& token, const Tokenizer& tokenizer, uint32_t top);
// INTERNAL (worker_protocol) when an id of `token` is not in [0, vocab_size), the model's.
Status CheckToken(const WorkerToken& token, uint32_t vocab_size);

class AnswerText {
 public:
  // `draw` tells the ids of this answer's calls from another's.
  AnswerText(std::shared_ptr<const TextAssets> text, RequestPtr request, uint32_t draw = 0);

  // What may be shown after `token`, which CheckToken accepted; perhaps nothing. The text of a stop token is
  // not shown. After a stop string matched, or the last call that is wanted, nothing more is.
  AnswerPiece Push(const WorkerToken& token);
  // The rest, when the worker has finished.
  AnswerPiece Finish();

  bool is_stopped() const { return stops_.stopped() || (calls_ != nullptr && calls_->is_full()); }
  bool has_tool_calls() const { return calls_ != nullptr && calls_->calls() > 0; }
  const std::string& stop() const { return stops_.matched(); }
  // Of all tokens pushed, shown or not.
  AnswerSignals signals() const { return meter_.signals(); }

 private:
  struct Logged {
    AnswerToken token = {};
    size_t begin = 0, end = 0;  // its text is bytes [begin, end) of the answer
  };
  bool IsCallMark(const WorkerToken& token) const;
  AnswerPiece Release(std::string text);
  AnswerPiece TakeCalls(AnswerPiece piece, bool is_last);

  const std::shared_ptr<const TextAssets> text_;
  const RequestPtr request_;
  Detokenizer detokenizer_;
  StopMatcher stops_;
  const uint32_t draw_;
  std::unique_ptr<ToolCallParser> calls_;  // null: the request has no tools
  std::vector<Logged> held_;               // tokens not shown yet
  size_t produced_ = 0, shown_ = 0;        // bytes of text
  SignalMeter meter_;
};

}  // namespace terrace
