// Passes gRPC calls on to workers in turn and does nothing else: what a proxy costs that is built on gRPC's
// C++ library, over channels as the router's but with a call to the worker for each of the client's, before
// it does any work of its own. Messages stay as they came, unparsed; metadata and deadlines are not passed
// on. Prints its address as one line of the log, and ends at SIGTERM.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/exit_code.h"
#include "base/grpc_channel.h"
#include "base/log.h"
#include "base/shutdown.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"

namespace terrace {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;

// A call with one message from the client and any number from the worker. Both halves hold it until their
// OnDone.
class RelayCall : public grpc::ServerGenericBidiReactor {
 public:
  static RelayCall* Start(grpc::GenericStub& worker, grpc::GenericCallbackServerContext& context) {
    auto* call = new RelayCall(worker, context.method());
    call->StartRead(&call->request_);
    return call;
  }

  // The client's side.
  void OnReadDone(bool ok) override {
    if (!ok) return Finish({grpc::StatusCode::INVALID_ARGUMENT, "a call has one message"});
    worker_.PrepareBidiStreamingCall(&context_, method_, grpc::StubOptions(), &to_worker_);
    to_worker_.StartWriteLast(&request_, grpc::WriteOptions());
    to_worker_.AddHold();  // reads are started by the client's side, too
    to_worker_.StartRead(&response_);
    is_started_ = true;
    to_worker_.StartCall();
  }
  void OnWriteDone(bool ok) override {
    if (!ok) context_.TryCancel();  // and then there is nothing to read
    to_worker_.StartRead(&response_);
  }
  void OnCancel() override { context_.TryCancel(); }
  void OnDone() override {
    if (!is_started_ || ++ended_ == 2) delete this;
  }

 private:
  class ToWorker : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
   public:
    explicit ToWorker(RelayCall& call) : call_(call) {}
    void OnReadDone(bool ok) override {
      if (!ok) return RemoveHold();
      call_.StartWrite(&call_.response_);
    }
    void OnDone(const grpc::Status& status) override {
      call_.Finish(status);
      if (++call_.ended_ == 2) delete &call_;
    }

   private:
    RelayCall& call_;
  };

  RelayCall(grpc::GenericStub& worker, std::string method) : worker_(worker), method_(std::move(method)) {}

  grpc::GenericStub& worker_;
  const std::string method_;
  grpc::ClientContext context_;
  grpc::ByteBuffer request_, response_;
  ToWorker to_worker_{*this};
  bool is_started_ = false;
  std::atomic<int> ended_ = 0;
};

class RelayService : public grpc::CallbackGenericService {
 public:
  explicit RelayService(const std::vector<std::string>& workers) {
    for (const std::string& address : workers) {
      workers_.push_back(std::make_unique<grpc::GenericStub>(
          MakePeerChannel(address, {.max_receive_bytes = kMaxMessageBytes})));
    }
  }

  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    return RelayCall::Start(*workers_[next_++ % workers_.size()], *context);
  }

 private:
  std::vector<std::unique_ptr<grpc::GenericStub>> workers_;
  std::atomic<size_t> next_ = 0;
};

Status Serve(const std::vector<std::string>& workers, ShutdownSignal& shutdown) {
  InitLog({.component = "relay"});
  RelayService service(workers);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&service);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) return Unavailable("no port is to be had");
  Log(LogLevel::kInfo, "relay_ready", {{"grpc", Concat("127.0.0.1:", port)}});
  shutdown.Wait();
  std::quick_exit(kExitOk);  // whatever is under way is of no interest
}

int Main(int argc, char** argv) {
  ShutdownSignal shutdown;
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  CLI::App app("Passes gRPC calls on to workers in turn, for benchmarks of routers.", "grpc_relay");
  std::vector<std::string> workers;
  app.add_option("--workers", workers, "their addresses")->required()->delimiter(',');
  CLI11_PARSE(app, argc, argv);
  const Status status = Serve(workers, shutdown);
  std::fprintf(stderr, "grpc_relay: %s\n", Message(status).c_str());
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
