// Workers without a model, for benchmarks and tests of routers: they answer any prompt with the same word
// again and again, or with a text that is given, at once or at a set pace, with as many places as asked for,
// and can pretend to have a prefix cache. Each also serves Inference.Generate with the same answers, for
// proxies that pass calls on as they are. Prints its addresses as one line of the log, and ends at SIGTERM.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/exit_code.h"
#include "base/log.h"
#include "base/shutdown.h"
#include "base/version.h"
#include "grpcpp/grpcpp.h"
#include "proto/terrace/v1/inference.grpc.pb.h"
#include "proto/terrace/v1/worker.grpc.pb.h"
#include "tests/bench/stub_calls.h"
#include "text/detokenizer.h"
#include "text/text_assets.h"
#include "worker/server/execute_reactor.h"
#include "worker/server/serve_hub.h"
#include "worker/server/watch_hub.h"
#include "worker/server/worker_metrics.h"

namespace terrace {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
constexpr char kLayout[] = "stub";

struct Flags {
  std::string text = "models/terrace-demo-nano";
  std::string answer;
  uint32_t workers = 1, places = UINT32_MAX, inbox = 256, tokens = 16, cache_blocks = 0, context = 1 << 20;
  uint32_t burst_tokens = 1;
  double first_token_ms = 0, inter_token_ms = 0, prefill_token_us = 0;
};

Duration FromSeconds(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

uint64_t Now() {
  return static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch() /
                               std::chrono::nanoseconds(1));
}

v1::WorkerDescription Describe(const Flags& flags, const TextAssets& text, uint32_t index) {
  v1::WorkerDescription out;
  out.set_instance(Concat("stub-", Now(), "-", index));
  out.set_model("stub");
  out.set_model_digest("stub");
  out.set_text_digest(Digest(text).Hex());
  out.set_version(kVersion);
  out.set_protocol(v1::WORKER_PROTOCOL_CURRENT);
  out.set_family("stub");
  out.set_vocab_size(static_cast<uint32_t>(text.tokenizer->vocab_size()));
  out.set_context_length(flags.context);
  out.set_block_tokens(StubCache::kBlockTokens);
  out.set_blocks(flags.cache_blocks);
  out.set_max_sequences(flags.places);
  out.set_device("stub");
  out.set_weight_dtype("none");
  out.set_kv_dtype("none");
  if (flags.cache_blocks > 0) out.set_kv_layout(kLayout);
  return out;
}

StubPace PaceOf(const Flags& flags) {
  return {.tokens = flags.tokens,
          .first_token = FromSeconds(flags.first_token_ms / 1e3),
          .inter_token = FromSeconds(flags.inter_token_ms / 1e3),
          .burst_tokens = flags.burst_tokens,
          .prefill_token = FromSeconds(flags.prefill_token_us / 1e6)};
}

// One token that is a word by itself.
StatusOr<StubAnswer> AWord(const Tokenizer& tokenizer) {
  for (TokenId token = 0; token < static_cast<TokenId>(tokenizer.vocab_size()); ++token) {
    const std::string_view bytes = tokenizer.TokenBytes(token);
    const bool is_word =
        bytes.size() == 5 && bytes[0] == ' ' &&
        std::all_of(bytes.begin() + 1, bytes.end(), [](char c) { return c >= 'a' && c <= 'z'; });
    if (is_word) return StubAnswer{.tokens = {token}, .texts = {std::string(bytes)}};
  }
  return FailedPrecondition("the vocabulary has no word of four letters");
}

StatusOr<StubAnswer> TheText(const std::string& text, const Tokenizer& tokenizer) {
  if (tokenizer.special().end.empty()) return FailedPrecondition("the vocabulary has no end of an answer");
  StubAnswer answer{.tokens = tokenizer.Encode(text), .ends = true};
  answer.tokens.push_back(tokenizer.special().end.front());
  Detokenizer detokenizer(tokenizer);  // whole characters
  for (const TokenId token : answer.tokens) answer.texts.push_back(detokenizer.Push(token));
  return answer;
}

// One worker at a port of its own.
class StubWorker {
 public:
  StubWorker(const Flags& flags, const TextAssets& text, const StubAnswer& answer, Alarms& alarms,
             uint32_t index)
      : flags_(flags),
        description_(Describe(flags, text, index)),
        text_(Serialize(text)),
        state_{.pace = PaceOf(flags),
               .answer = answer,
               .alarms = alarms,
               .places = {flags.places, flags.inbox},
               .cache = {{.model = description_.model_digest(), .layout = kLayout}, flags.cache_blocks}},
        host_{.instance = description_.instance(),
              .submit =
                  [this](SequenceSpec spec, std::shared_ptr<TokenSink> sink) {
                    return StubSequence::Submit(state_, std::move(spec), std::move(sink));
                  },
              .wake = [] {},
              .metrics = metrics_},
        hub_(kServe, host_),
        watches_([this](std::optional<uint64_t>& position) { return Snapshot(position); }) {}

  StatusOr<std::string> Listen() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&worker_);
    builder.RegisterService(&inference_);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) return Unavailable("no port is to be had");
    return Concat("127.0.0.1:", port);
  }

  // What the steps until now have given goes out.
  void Flush() { hub_.Flush(); }

 private:
  // No two tokens share an event: a worker makes one a step.
  static constexpr ServeHub::Options kServe = {.execute = {.buffer_logprobs = 1}};

  class Worker : public v1::Worker::CallbackService {
   public:
    explicit Worker(StubWorker& stub) : stub_(stub) {}

    grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context, const v1::DescribeRequest*,
                                       v1::WorkerDescription* response) override {
      *response = stub_.description_;
      auto* reactor = context->DefaultReactor();
      reactor->Finish(grpc::Status::OK);
      return reactor;
    }

    grpc::ServerWriteReactor<v1::TextChunk>* FetchText(grpc::CallbackServerContext*,
                                                       const v1::FetchTextRequest*) override {
      return new TextCall(stub_.text_);
    }

    grpc::ServerWriteReactor<v1::ExecuteEvent>* Execute(grpc::CallbackServerContext* context,
                                                        const v1::ExecuteRequest* request) override {
      return ExecuteReactor::Start(kServe.execute, stub_.host_, *context, *request);
    }

    grpc::ServerBidiReactor<v1::ServeCommands, v1::ServeEvents>* Serve(
        grpc::CallbackServerContext* context) override {
      return stub_.hub_.Serve(*context);
    }

    grpc::ServerWriteReactor<v1::WorkerUpdate>* Watch(grpc::CallbackServerContext*,
                                                      const v1::WatchRequest*) override {
      return stub_.watches_.Watch();
    }

   private:
    // All of it in one chunk: the demo vocabularies are small.
    class TextCall : public grpc::ServerWriteReactor<v1::TextChunk> {
     public:
      explicit TextCall(const std::string& text) {
        chunk_.set_data(text);
        StartWriteAndFinish(&chunk_, grpc::WriteOptions(), grpc::Status::OK);
      }
      void OnDone() override { delete this; }

     private:
      v1::TextChunk chunk_;
    };

    StubWorker& stub_;
  };

  class Inference : public v1::Inference::CallbackService {
   public:
    explicit Inference(StubWorker& stub) : stub_(stub) {}

    grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                             const v1::GenerateRequest* request) override {
      return std::make_shared<StubGenerate>(stub_.state_, *context, *request)->Start();
    }

   private:
    StubWorker& stub_;
  };

  v1::WorkerUpdate Snapshot(std::optional<uint64_t>& position) const {
    v1::WorkerUpdate update;
    update.set_epoch(epoch_);
    update.set_state(v1::WORKER_STATE_READY);
    const Places::Load now = state_.places.load();
    const uint32_t cached = static_cast<uint32_t>(state_.cache.size());
    v1::WorkerLoad& load = *update.mutable_load();
    load.set_running_sequences(now.running);
    load.set_waiting_sequences(now.waiting);
    load.set_waiting_prompt_tokens(now.waiting_prompt_tokens);
    load.set_total_blocks(flags_.cache_blocks);
    load.set_free_blocks(flags_.cache_blocks - cached);
    load.set_cached_blocks(cached);
    const PrefixJournal::Delta delta = state_.cache.journal().Since(position);
    position = delta.position;
    v1::PrefixDelta& prefixes = *update.mutable_prefixes();
    prefixes.set_is_snapshot(delta.is_snapshot);
    prefixes.mutable_added()->Add(delta.added.begin(), delta.added.end());
    prefixes.set_digest(delta.digest);
    return update;
  }

  const Flags& flags_;
  const v1::WorkerDescription description_;
  const std::string text_;
  const uint64_t epoch_ = Now();
  StubState state_;
  WorkerMetrics metrics_;
  const ExecuteHost host_;
  ServeHub hub_;
  WatchHub watches_;
  Worker worker_{*this};
  Inference inference_{*this};
  std::unique_ptr<grpc::Server> server_;
};

Status Serve(const Flags& flags, ShutdownSignal& shutdown) {
  InitLog({.component = "stub"});
  ASSIGN_OR_RETURN(const TextAssets text, LoadTextAssets(flags.text));
  ASSIGN_OR_RETURN(const StubAnswer answer,
                   flags.answer.empty() ? AWord(*text.tokenizer) : TheText(flags.answer, *text.tokenizer));
  std::vector<std::unique_ptr<StubWorker>> workers;  // does not change any more when a call comes
  Alarms alarms([&workers] {
    for (const auto& worker : workers) worker->Flush();
  });
  Json addresses = Json::array();
  for (uint32_t i = 0; i < flags.workers; ++i) {
    workers.push_back(std::make_unique<StubWorker>(flags, text, answer, alarms, i));
    ASSIGN_OR_RETURN(const std::string address, workers.back()->Listen());
    addresses.push_back(address);
  }
  Log(LogLevel::kInfo, "stub_ready", {{"grpc", addresses}});
  shutdown.Wait();
  std::quick_exit(kExitOk);  // whatever is under way is of no interest
}

int Main(int argc, char** argv) {
  ShutdownSignal shutdown;
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  CLI::App app("Workers without a model, for benchmarks and tests of routers.", "stub_worker");
  Flags flags;
  app.add_option("--text", flags.text, "model folder whose tokenizer and chat template they have")
      ->capture_default_str();
  app.add_option("--answer", flags.answer,
                 "what each answer says, and then ends (default: a word, until it has its tokens)");
  app.add_option("--workers", flags.workers, "each at a port of its own")->capture_default_str();
  app.add_option("--places", flags.places, "sequences of a worker at once (default: any number)");
  app.add_option("--inbox", flags.inbox, "sequences that wait for a place; more are refused")
      ->capture_default_str();
  app.add_option("--tokens", flags.tokens,
                 "of answers whose request does not say how many; not with --answer")
      ->capture_default_str();
  app.add_option("--context", flags.context, "tokens, prompt and answer together")->capture_default_str();
  app.add_option("--cache-blocks", flags.cache_blocks,
                 "the first so many blocks of prompts count as cached; 0: no prefix cache")
      ->capture_default_str();
  app.add_option("--first-token-ms", flags.first_token_ms, "")->capture_default_str();
  app.add_option("--inter-token-ms", flags.inter_token_ms, "")->capture_default_str();
  app.add_option("--burst-tokens", flags.burst_tokens, "that come at once, with the first one")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--prefill-token-us", flags.prefill_token_us,
                 "before the first token, for each of the prompt that is not cached")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const Status status = Serve(flags, shutdown);
  std::fprintf(stderr, "stub_worker: %s\n", Message(status).c_str());
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
