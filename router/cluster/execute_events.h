// A call's request and events between the messages of worker.proto and the values of replica_client.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"
#include "proto/terrace/v1/worker.pb.h"
#include "router/cluster/replica_client.h"

namespace terrace {

// INTERNAL, reason worker_protocol.
Status ProtocolError(const std::string& what);

v1::ExecuteRequest ToProto(const ExecuteSpec& spec);

// How many tokens, scores and alternatives there are in `event`: what credit is counted in.
size_t CountLogprobs(const v1::ExecuteEvent& event);

// Checks the order of one call's events and passes them on. One thread at a time.
class ExecuteOrder {
 public:
  explicit ExecuteOrder(const ExecuteSpec& spec)
      : next_token_(spec.resume.size()), prompt_tokens_(spec.prompt->size()) {}

  // The call's end: its result with its last event, or an error of the worker's, behind which nothing counts.
  std::optional<StatusOr<ExecuteResult>> Take(const v1::ExecuteEvent& event, ExecuteEvents& events);

 private:
  Status TakeTokens(const v1::TokenBatch& batch, ExecuteEvents& events);
  Status TakeScores(const v1::PromptScores& batch, ExecuteEvents& events);
  Status TakeStarted(const v1::ExecuteStarted& started, ExecuteEvents& events);
  StatusOr<ExecuteResult> TakeFinished(const v1::ExecuteFinished& finished) const;

  uint64_t next_token_, next_score_ = 1;
  uint64_t prompt_tokens_;
  bool is_started_ = false;
};

}  // namespace terrace
