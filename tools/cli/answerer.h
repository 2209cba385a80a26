// Something that answers generate requests: a router over gRPC (router_client.h), a model in this process
// (local_model.h), a fake in tests. The protocol's messages are the vocabulary of all.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/shutdown.h"
#include "base/status.h"
#include "proto/terrace/v1/inference.pb.h"

namespace terrace {

// A piece of an answer. An error, or a piece with `finished`, is the last one.
using AnswerPiece = StatusOr<v1::GenerateResponse>;
// Called in order, on a thread of the Answerer; must not block.
using OnAnswerPiece = std::function<void(AnswerPiece piece)>;

// One answer in progress. May be dropped at any time, which does not cancel; pieces may still come after
// that.
class AnswerCall {
 public:
  virtual ~AnswerCall() = default;
  virtual void Cancel() = 0;  // the last piece is then an error
};

// Thread-safe.
class Answerer {
 public:
  virtual ~Answerer() = default;
  virtual std::unique_ptr<AnswerCall> Start(const v1::GenerateRequest& request, OnAnswerPiece on_piece) = 0;
  virtual StatusOr<v1::ListModelsResponse> ListModels() = 0;
};

struct Answer {
  std::string text;
  std::vector<v1::OutputToken> tokens;
  v1::GenerateFinished finished;

  void Add(const v1::GenerateResponse& piece);
};

struct AskOptions {
  std::function<void(const v1::GenerateResponse& piece)> on_piece;
  std::function<void()> on_wait;  // called at least about every 50 ms
};

// Asks and waits, on the caller's thread. CANCELLED when a signal came: the request is then cancelled.
StatusOr<Answer> Ask(Answerer& answerer, const v1::GenerateRequest& request, ShutdownSignal& shutdown,
                     const AskOptions& options = {});

}  // namespace terrace
