// An answer on its way to a client: pieces, then one summary or error. Values and one interface.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "text/tokenizer.h"

namespace terrace {

enum class AnswerEnd : uint8_t {
  kStop,    // an end token, a stop token or a stop string
  kLength,  // max_tokens or the context length
};
inline const char* AnswerEndName(AnswerEnd end) { return end == AnswerEnd::kStop ? "stop" : "length"; }

struct TokenUsage {
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;  // of the prompt
  uint32_t completion_tokens = 0;

  friend bool operator==(const TokenUsage&, const TokenUsage&) = default;
};

// One worker that was asked. `usage` is what it did as far as the router knows: of an attempt that broke off,
// the prompt and the tokens that came. What the client abandoned is priced as done; what a worker failed at
// costs nothing.
struct AnswerAttempt {
  std::string tier = {};
  std::string replica = {};  // its address
  TokenUsage usage = {};
  double mean_logprob = 0;               // of its tokens, end token included
  std::optional<double> threshold = {};  // of the gate; absent on the last tier
  bool accepted = false;
  double price_usd = 0;
};

struct RankedToken {
  TokenId id = 0;
  float logprob = 0;
  std::string bytes = {};
};

struct AnswerToken {
  TokenId id = 0;
  float logprob = 0;
  std::string bytes = {};             // that it stands for; "" for control tokens
  bool is_control = false;            // an end token
  std::vector<RankedToken> top = {};  // most likely first
};

// Whole UTF-8 characters, and the tokens whose text ends in them. The pieces of an answer, joined, are its
// text and its tokens. A token of which a stop string left no byte is counted in the usage but is in no
// piece.
struct AnswerPiece {
  std::string text = {};
  std::vector<AnswerToken> tokens = {};
  bool empty() const { return text.empty() && tokens.empty(); }
};

struct AnswerSummary {
  AnswerEnd end = AnswerEnd::kStop;
  std::string stop = {};                     // the stop string that matched, or ""
  TokenUsage usage = {};                     // of the last attempt: the one that answered
  std::string tier = {};                     // that gave the answer
  std::vector<AnswerAttempt> attempts = {};  // in order; the last one answered
  double price_usd = 0;                      // of all attempts together
  double time_to_first_token_seconds = 0;
  double total_seconds = 0;
};

// Where an answer goes. OnPiece and OnFinish are called by one thread at a time, OnFinish exactly once and
// last; neither may block. is_closed may be asked by any thread.
class AnswerSink {
 public:
  virtual ~AnswerSink() = default;
  virtual void OnPiece(AnswerPiece piece) = 0;
  virtual void OnFinish(StatusOr<AnswerSummary> summary) = 0;
  // The client is gone: nobody reads further pieces.
  virtual bool is_closed() const = 0;
};

}  // namespace terrace
