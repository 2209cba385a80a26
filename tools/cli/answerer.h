// Something that answers generate requests: a router over gRPC (router_client.h), one worker
// (worker_model.h), a model in this process (local_model.h), a fake in tests. The protocol's messages are the
// vocabulary of all.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/shutdown.h"
#include "base/status.h"
#include "proto/terrace/v1/inference.pb.h"
#include "text/chat_template.h"
#include "worker/engine/speculation_stats.h"

namespace terrace {

// How many answers a request gets.
uint32_t ChoicesOf(const v1::GenerateRequest& request);

void AddUsage(const v1::Usage& from, v1::Usage& to);

// Roles and contents, as a chat template takes them.
std::vector<ChatMessage> MessagesOf(const v1::ChatMessages& chat);

// A piece of one of the answers. An error is the last one, and so is the last piece with `finished`: each
// answer has one.
using AnswerPiece = StatusOr<v1::GenerateResponse>;
// Called in order, on a thread of the Answerer; must not block.
using OnAnswerPiece = std::function<void(AnswerPiece piece)>;

// A model that runs in this process or in the one worker that is asked, and how: digests as a worker tells of
// them (v1.WorkerDescription). Of a worker's, `compute`, `build` and bytes are not known.
struct ModelFacts {
  bool is_in_process = true;
  std::string name = {}, model_digest = {}, text_digest = {};
  std::string instance = {};  // of a worker: its process
  std::string device = {}, compute = {}, kv_dtype = {}, weight_dtype = {};
  std::string build = {};  // BuildFor `device`
  uint64_t parameters = 0, weight_bytes = 0, kv_bytes = 0;

  // What its answers follow from beside its files and the build. A worker does not tell what it computes
  // with: its process stands for that.
  std::string runtime() const {
    return Concat(device, " ", is_in_process ? compute : instance, " ", kv_dtype);
  }
};

// One request in progress. May be dropped at any time, which does not cancel; pieces may still come after
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
  // What a model in this process has drafted since its start, perhaps without its last step. Absent where it
  // has no drafter, or is elsewhere.
  virtual std::optional<SpeculationStats> Speculation() const { return std::nullopt; }
  // Of a model in this process or in one worker.
  virtual std::optional<ModelFacts> Facts() const { return std::nullopt; }
};

struct Answer {
  std::string text;
  std::vector<v1::OutputToken> tokens;
  std::vector<v1::OutputToken> prompt_tokens;  // of the first answer, when they were asked for
  v1::GenerateFinished finished;

  void Add(const v1::GenerateResponse& piece);
};

struct AskOptions {
  std::function<void(const v1::GenerateResponse& piece)> on_piece;
  std::function<void()> on_wait;  // called at least about every 50 ms
};

// Asks and waits, on the caller's thread; the answers by choice. CANCELLED when a signal came: the request is
// then cancelled.
StatusOr<std::vector<Answer>> AskSeveral(Answerer& answerer, const v1::GenerateRequest& request,
                                         ShutdownSignal& shutdown, const AskOptions& options = {});
// The first answer.
StatusOr<Answer> Ask(Answerer& answerer, const v1::GenerateRequest& request, ShutdownSignal& shutdown,
                     const AskOptions& options = {});

}  // namespace terrace
