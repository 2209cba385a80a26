// One worker as the router calls it: tokens in, events out. Plain values; the gRPC behind it is in
// grpc_worker.cc, the fake of tests in fake_cluster.h.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "router/request/answer.h"
#include "router/request/request.h"

namespace terrace {

// Of the UNAVAILABLE of a call that never had a connection to its worker, and of one that was given up
// because the worker said nothing for too long. A connection that was lost has no reason.
inline constexpr char kUnreachedReason[] = "unreached", kSilentReason[] = "silent";
// What a worker says of the calls that its device was lost under.
inline constexpr char kDeviceLostReason[] = "device_lost";

struct ExecuteSpec {
  std::string request_id = {};
  std::string instance = {};  // the process that is meant (ReplicaDescription::instance); "": any
  std::shared_ptr<const std::vector<TokenId>> prompt = {};
  // Of the answer: what there is of it already, from an earlier call; and what may follow.
  std::vector<TokenId> resume = {}, draft = {};
  Sampling sampling = {};   // its seed is set
  uint32_t max_tokens = 0;  // of the answer, `resume` too; 0: what the context holds, unless score_prompt
  std::vector<TokenId> stop_tokens = {};
  bool ignore_eos = false;
  uint32_t top_logprobs = 0;
  bool score_prompt = false;
  bool signals = false;  // tokens have margin and entropy
  // That the worker may draft itself in a step; 0: none; absent: as it is configured.
  std::optional<uint32_t> speculation_max_tokens = {};
  // That the earlier call told last (ExecuteEvents::OnDraftRecord); "": none did.
  std::string draft_record = {};
  int32_t priority = 0;
  std::string cache_salt = {};
  std::string traceparent = {}, tracestate = {};  // W3C; "": none
  MonoTime deadline = {};
};

struct WorkerToken {
  struct Alternative {
    TokenId token = 0;
    float logprob = 0;
  };
  TokenId token = 0;
  float logprob = 0;
  std::vector<Alternative> top = {};  // most likely first
  float margin = 0, entropy = 0;      // nats; with `signals`
};

struct ExecuteResult {
  AnswerEnd end = AnswerEnd::kStop;
  TokenUsage usage = {};  // of the whole answer, with what was resumed
  double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
};

// What a worker says about one call. Called by one thread at a time, OnDone exactly once and last; must not
// block.
class ExecuteEvents {
 public:
  virtual ~ExecuteEvents() = default;
  // At most once, first: so much of the prompt was in the worker's cache.
  virtual void OnStarted(uint32_t cached_tokens) = 0;
  // Before tokens: what their worker has learnt of its own drafts, for the call that may have to go on behind
  // them (ExecuteSpec::draft_record). Bytes of the workers'.
  virtual void OnDraftRecord([[maybe_unused]] const std::string& record) {}
  virtual void OnTokens(std::vector<WorkerToken> tokens) = 0;        // behind `resume`: no gap, no repeat
  virtual void OnPromptScores(std::vector<WorkerToken> scores) = 0;  // of prompt tokens 1, 2, ...
  // An error is the worker's, or UNAVAILABLE when it is lost (see above), DEADLINE_EXCEEDED, or CANCELLED
  // after Cancel.
  virtual void OnDone(StatusOr<ExecuteResult> result) = 0;
  // No more should come for now: the call reads nothing further, and so its worker pauses, until Resume. Any
  // thread, also with locks of the call's and its connection's held: it must take none.
  virtual bool is_full() const { return false; }
};

// A running call. Dropping the handle does not end the call.
class CallHandle {
 public:
  virtual ~CallHandle() = default;
  // Any thread, any number of times; OnDone still follows, but not from within.
  virtual void Cancel() = 0;
  // Events that were full are so no more. Any thread, any number of times, without a lock that events take.
  // Until then the end of a call may not be told either, be it the worker's or the deadline's.
  virtual void Resume() {}
};

// Thread-safe.
class ReplicaClient {
 public:
  virtual ~ReplicaClient() = default;
  // Never blocks. Events may arrive before this returns.
  virtual std::shared_ptr<CallHandle> Execute(const ExecuteSpec& spec,
                                              std::shared_ptr<ExecuteEvents> events) = 0;
};

}  // namespace terrace
