// An answer on its way to a client: pieces, then one summary or error. Values and one interface.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "text/tokenizer.h"
#include "text/tool_calls.h"

namespace terrace {

enum class AnswerEnd : uint8_t {
  kStop,       // an end token, a stop token or a stop string
  kLength,     // max_tokens or the context length
  kToolCalls,  // as kStop, with at least one call of a tool
};
inline const char* AnswerEndName(AnswerEnd end) {
  if (end == AnswerEnd::kToolCalls) return "tool_calls";
  return end == AnswerEnd::kStop ? "stop" : "length";
}

struct TokenUsage {
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;  // of the prompt
  uint32_t completion_tokens = 0;
  // That the worker drafted itself: verified, and of those in the answer. It tells at the end of its call.
  uint32_t speculated_tokens = 0, accepted_speculated_tokens = 0;

  friend bool operator==(const TokenUsage&, const TokenUsage&) = default;
};

// What an answer takes that begins now, by what was measured lately. Absent: nothing was.
struct AnswerSpeed {
  std::optional<double> first_token_seconds = {};  // the wait for a place included
  std::optional<double> seconds_per_token = {};    // of those behind it
};

// One worker that was asked. `usage` is what it did as far as the router knows: of an attempt that broke off,
// the prompt and the tokens that came. What the client abandoned is priced as done; what a worker failed at,
// or the router ended, costs nothing, but the tokens that the next one went on behind are priced with what it
// gave.
struct AnswerAttempt {
  uint32_t choice = 0;  // the answer it was for
  std::string tier = {};
  std::string replica = {};              // its address
  uint32_t predicted_cached_tokens = 0;  // what the router believed of usage.cached_tokens
  TokenUsage usage = {};
  uint32_t resumed_tokens = 0;         // of the answer: from the attempts before, and not in `usage`
  uint32_t draft_tokens = 0;           // of the tier before, that this one was to verify
  uint32_t accepted_draft_tokens = 0;  // of those, that its answer has too
  // Of the answer's tokens so far, end token included; margin (the likeliest token's log-probability less the
  // second's) and entropy where the policy looks at one of the two.
  double mean_logprob = 0, min_logprob = 0;
  std::optional<double> mean_margin = {}, mean_entropy = {};
  // What was judged, and what it had to be above: of the gate, or of the hold that decided, by the answer as
  // far as it was then. A mean log-probability, or of a calibrated gate the scorer's probability that the
  // answer is good; of a tier that another's first token chose, by that token. Absent where nothing is
  // judged.
  std::optional<double> score = {}, threshold = {};
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

// Whole UTF-8 characters, and the tokens whose text ends in them. The pieces of one choice, joined, are its
// text (behind the prompt's, where an echo was asked for) and its tokens. A token of which a stop string left
// no byte is counted in the usage but is in no piece. Of a request with tools, what may be the beginning of a
// call is held back: text comes later than its tokens then, or as a call.
struct AnswerPiece {
  uint32_t choice = 0;
  std::string text = {};
  std::vector<AnswerToken> tokens = {};
  std::vector<ToolCall> tool_calls = {};  // whole ones, behind the text

  bool empty() const { return text.empty() && tokens.empty() && tool_calls.empty(); }
  // `next` of the same choice follows.
  void Append(AnswerPiece next) {
    text += next.text;
    std::move(next.tokens.begin(), next.tokens.end(), std::back_inserter(tokens));
    std::move(next.tool_calls.begin(), next.tool_calls.end(), std::back_inserter(tool_calls));
  }
};

// Of one choice, or of all that a request got. The prompt counts once, with choice 0, and so does what was
// drawn and not sent: over the choices, usage, attempts and price add up to the request's.
struct AnswerSummary {
  AnswerEnd end = AnswerEnd::kStop;
  std::string stop = {};                     // the stop string that matched, or ""
  TokenUsage usage = {};                     // of the attempts that answered
  std::string tier = {};                     // that gave the answer
  std::string reason = {};                   // why that one (docs/how-to/policies.md)
  std::vector<AnswerAttempt> attempts = {};  // in order; the last one of a choice answered
  double price_usd = 0;                      // of all attempts together
  double time_to_first_token_seconds = 0;
  double total_seconds = 0;
};

// Adds tokens, attempts and price; the rest of `to` stays.
inline void AddCosts(const AnswerSummary& from, AnswerSummary& to) {
  to.usage.prompt_tokens += from.usage.prompt_tokens;
  to.usage.cached_tokens += from.usage.cached_tokens;
  to.usage.completion_tokens += from.usage.completion_tokens;
  to.usage.speculated_tokens += from.usage.speculated_tokens;
  to.usage.accepted_speculated_tokens += from.usage.accepted_speculated_tokens;
  to.attempts.insert(to.attempts.end(), from.attempts.begin(), from.attempts.end());
  to.price_usd += from.price_usd;
}

// A price as replies and logs have it: to a millionth of a µUSD, so without the last digits of a double's
// sum.
inline double ShownUsd(double usd) {
  constexpr double kPerUsd = 1e12;
  return std::round(usd * kPerUsd) / kPerUsd;
}

// Where the answers to a request go: pieces of all choices, mixed, each choice in order. The On... functions
// are called by one thread at a time and must not block; any thread may ask the rest.
class AnswerSink {
 public:
  virtual ~AnswerSink() = default;
  // The prompt's tokens, the first with log-probability 0; once, before the first piece of choice 0, when
  // they were asked for.
  virtual void OnPromptTokens(std::vector<AnswerToken> tokens) = 0;
  virtual void OnPiece(AnswerPiece piece) = 0;
  // Nothing more comes of this choice.
  virtual void OnChoiceEnd(uint32_t choice, const AnswerSummary& summary) = 0;
  // Exactly once and last: the sum over all choices (end, stop and tier are those of choice 0), or the error
  // that ended what was not over.
  virtual void OnFinish(StatusOr<AnswerSummary> total) = 0;
  // The client is gone: nobody reads further pieces.
  virtual bool is_closed() const = 0;
  // It was hung up on, because it read too slowly.
  virtual bool is_too_slow() const { return false; }
  // More waits for the client than should: no more should be made until OnRoom's callback. What is under way
  // may still be sent. Any thread may ask.
  virtual bool is_full() const { return false; }
  // Before anything else, once: `on_room` is called each time a sink that was full has room again, by any
  // thread, without a lock.
  virtual void OnRoom(std::function<void()> /*on_room*/) {}
};

}  // namespace terrace
