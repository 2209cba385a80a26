#include "worker/server/worker_server.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/grpc_channel.h"
#include "base/grpc_keepalive.h"
#include "base/grpc_tls.h"
#include "base/log.h"
#include "base/version.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server_builder.h"
#include "worker/engine/collecting_sink.h"
#include "worker/server/remote_drafter.h"
#include "worker/server/stop_engine.h"

namespace terrace {
namespace {

constexpr int kMaxMessageBytes = 16 << 20;
constexpr size_t kWarmUpTokens = 96;  // of a device: more than its kernels for few tokens take
constexpr Duration kStallLimit = std::chrono::seconds(10);
constexpr Duration kBehindGroupTimeout = std::chrono::seconds(5);  // for a step that did succeed in the end
constexpr std::chrono::milliseconds kCloseLimit(500);              // for clients to take the last words
constexpr std::chrono::milliseconds kCancelPoll(100);              // of the warm-up

Status CannotListen(const std::string& address) {
  return WithReason(
      Unavailable("cannot listen on ", address, ": the port is in use, or it is no address of this machine"),
      "address_unavailable");
}

// As of WorkerDescription.
std::string DescribeDrafter(const OpenedEngine& opened, const WorkerServerOptions& options) {
  if (opened.drafter == "none") return "";
  if (opened.drafter == "remote" && options.remote_drafter.has_value())
    return Concat("remote ", options.remote_drafter->address);
  if (opened.draft_files == nullptr) return opened.drafter;
  return Concat(opened.draft_files->config.name, " on ", opened.drafter_device);
}

uint32_t Ranks(const OpenedEngine& opened) {
  return std::max(static_cast<uint32_t>(opened.ranks.size()), 1u);
}

uint32_t TensorParallel(const OpenedEngine& opened) { return Ranks(opened) / opened.stages; }

v1::WorkerDescription Describe(const OpenedEngine& opened, const std::string& served_name,
                               const WorkerServerOptions& options) {
  const ModelFiles& files = *opened.files;
  v1::WorkerDescription description;
  description.set_model(served_name);
  description.set_model_digest(files.digest.Hex());
  description.set_text_digest(Digest(*files.text).Hex());
  description.set_version(kVersion);
  description.set_protocol(v1::WORKER_PROTOCOL_CURRENT);
  description.set_family(files.config.family);
  description.set_parameters(opened.parameters);
  description.set_vocab_size(files.config.vocab_size);
  description.set_context_length(opened.context_length);
  description.set_block_tokens(opened.block_tokens);
  description.set_blocks(opened.blocks);
  description.set_max_sequences(opened.max_sequences);
  description.set_device(opened.device);
  description.set_weight_dtype(opened.weight_dtype);
  description.set_kv_dtype(opened.kv_dtype);
  description.set_compute(opened.compute);
  description.set_drafter(DescribeDrafter(opened, options));
  const SchedulerOptions& scheduler = opened.engine->scheduler_options();
  if (scheduler.prefix_cache) description.set_kv_layout(scheduler.scope.layout);
  description.set_tensor_parallel(TensorParallel(opened));
  description.set_pipeline_parallel(opened.stages);
  for (const RankMemory& memory : opened.ranks) {
    v1::RankDescription& rank = *description.add_ranks();
    rank.set_weight_bytes(memory.weight_bytes);
    rank.set_kv_bytes(memory.kv_bytes);
  }
  return description;
}

// What of load_seconds was what.
Json LoadJson(const OpenedEngine& opened, double warm_up_seconds) {
  const LoadTimes& times = opened.load_times;
  return {{"open_seconds", times.open},
          {"device_seconds", times.device},
          {"weights_seconds", times.weights},
          {"weights_read_seconds", times.read},
          {"weights_wait_seconds", times.wait},
          {"drafter_seconds", times.drafter},
          {"executor_seconds", times.executor},
          {"warm_up_seconds", warm_up_seconds},
          {"weights_gb_per_second",
           times.weights > 0 ? static_cast<double>(opened.weight_bytes) / times.weights / 1e9 : 0.0}};
}

}  // namespace

Duration StallLimit(const WorkerServerOptions& options) {
  if (options.engine.group.ranks == 1) return kStallLimit;
  return std::max(kStallLimit, options.group.timeout + kBehindGroupTimeout);
}

bool IsAlive(const EngineStats& stats, MonoTime now, Duration stall_limit) {
  return !stats.is_device_lost && !IsStalled(stats, now, stall_limit);
}

decltype(GroupOptions::join) JoinOf(const WorkerServerOptions& options) {
  const GroupOptions& group = options.engine.group;
  return [endpoint = options.group, rank = group.rank, ranks = group.ranks,
          is_cancelled = options.engine.is_cancelled](const RankTraits& traits) {
    return MeetGroup(endpoint, rank, ranks, traits, is_cancelled);
  };
}

StatusOr<std::unique_ptr<WorkerServer>> WorkerServer::Start(WorkerServerOptions options) {
  const MonoTime begin = RealClock().Now();
  std::unique_ptr<WorkerServer> server(new WorkerServer);
  server->stall_limit_ = StallLimit(options);
  server->on_step_hangs_ = options.on_step_hangs;
  RETURN_IF_ERROR(server->Open(options));
  RETURN_IF_ERROR(server->Listen(options));
  const MonoTime cold = RealClock().Now();
  RETURN_IF_ERROR(server->WarmUp(options.engine.is_cancelled));
  const double warm_up_seconds = Seconds(RealClock().Now() - cold);
  const double load_seconds = Seconds(RealClock().Now() - begin);
  const OpenedEngine& opened = server->opened_;
  server->metrics_.OnLoaded(
      {.block_tokens = opened.block_tokens, .blocks = opened.blocks, .dtype = opened.kv_dtype}, load_seconds);
  server->metrics_.OnGroup(opened.ranks, opened.stages);
  server->service_->SetReady();
  server->UpdateHealth();
  server->LogReady(load_seconds, warm_up_seconds);
  return server;
}

WorkerServer::~WorkerServer() { Stop(); }

// Null without `files`. `path`: of the setting.
StatusOr<std::shared_ptr<TlsSource>> WorkerServer::OpenTls(const std::optional<TlsFiles>& files,
                                                           const std::string& path, const std::string& use) {
  if (!files.has_value()) return std::shared_ptr<TlsSource>();
  auto source = TlsSource::Open(*files, {.use = use, .metrics = &metrics_.registry()});
  if (!source.ok()) return Annotate(source.status(), path);
  return source;
}

Status WorkerServer::Open(const WorkerServerOptions& options) {
  ASSIGN_OR_RETURN(tls_, OpenTls(options.tls, "tls", "listen"));
  OpenEngineOptions engine = options.engine;
  if (engine.speculation.drafter == "remote") {
    CHECK(options.remote_drafter.has_value());
    const DrafterEndpoint& remote = *options.remote_drafter;
    ASSIGN_OR_RETURN(drafter_tls_, OpenTls(remote.tls, "engine.speculation.remote.tls", "drafter"));
    engine.make_drafter = [this, &remote](const ModelFiles& files) {
      return MakeRemoteDrafter(remote, files);
    };
  }
  engine.group.join = JoinOf(options);
  engine.on_step = [this](const StepObservation& step) { metrics_.OnStep(step); };
  engine.on_flush = [this] { service_->Flush(); };  // something was submitted: service_ is there
  engine.on_device_lost = [this](const Status& error) { OnDeviceLost(error); };
  engine.on_drafter_failed = [](const Status& error) {
    Log(LogLevel::kError, "worker_drafter_failed", {{"error", Message(error)}});
  };
  engine.tuning.on_failed = [](const Status& error) {
    Log(LogLevel::kWarn, "worker_tuning_not_kept", {{"reason", Message(error)}});
  };
  ASSIGN_OR_RETURN(opened_, OpenEngine(engine));
  served_name_ = options.served_name.empty() ? opened_.files->config.name : options.served_name;
  OpenServices(options);
  // What was lost before there was a service, as a group may be without a step.
  if (const Status lost = opened_.engine->device_error(); !lost.ok())
    return WithReason(Unavailable("the group is lost: ", Message(lost)), "group_lost");
  return {};
}

std::unique_ptr<Drafter> WorkerServer::MakeRemoteDrafter(const DrafterEndpoint& endpoint,
                                                         const ModelFiles& files) {
  const PeerChannelOptions channel{.credentials = MakeChannelCredentials(drafter_tls_.get()),
                                   .server_name = endpoint.server_name};
  return std::make_unique<RemoteDrafter>(
      RemoteDrafter::Options{.channel = MakePeerChannel(endpoint.address, channel),
                             .address = endpoint.address,
                             .tokenizer_digest = TokenizerDigest(*files.text).Hex(),
                             .vocab_size = files.config.vocab_size},
      metrics_);
}

void WorkerServer::OpenServices(const WorkerServerOptions& options) {
  // Without a prefix cache every attempt would compute the whole sequence; half of the inbox is for requests.
  if (options.engine.prefix_cache && options.engine.inbox > 1) {
    drafts_ = std::make_unique<DraftService>(
        DraftService::Options{
            .tokenizer_digest = TokenizerDigest(*opened_.files->text).Hex(),
            // Some have just been cancelled.
            .max_running = std::min<size_t>(2 * opened_.max_sequences, options.engine.inbox / 2)},
        *opened_.engine, metrics_);
  }
  WorkerService::Options service{.description = Describe(opened_, served_name_, options),
                                 .text_assets = Serialize(*opened_.files->text),
                                 .stall_limit = stall_limit_,
                                 .on_draining = [this] { OnDraining(); }};
  service_ = std::make_unique<WorkerService>(std::move(service), *opened_.engine, metrics_);
  opened_service_ = service_.get();
}

Status WorkerServer::Listen(const WorkerServerOptions& options) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options.grpc, MakeServerCredentials(tls_.get()), &port);
  builder.RegisterService(service_.get());
  if (drafts_ != nullptr) builder.RegisterService(drafts_.get());
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // two workers must not share a port unnoticed
  SetKeepalive(builder);  // a client that is gone without a word does not keep its paused sequence
  grpc_ = builder.BuildAndStart();
  if (grpc_ == nullptr || port == 0) return CannotListen(options.grpc);
  {
    std::lock_guard lock(health_mutex_);
    health_ = grpc_->GetHealthCheckService();
  }
  UpdateHealth();  // not serving until warm
  grpc_address_ = Concat(options.grpc.substr(0, options.grpc.rfind(':')), ":", port);

  if (options.ops.empty()) return {};
  HttpServerOptions http;
  http.address = options.ops;
  http.max_body_bytes = 0;
  ASSIGN_OR_RETURN(ops_, HttpServer::Start(std::move(http), [this](HttpRequest request,
                                                                   std::shared_ptr<HttpResponder> responder) {
                     Answer(request, *responder);
                   }));
  return {};
}

// One token through the whole model, so that the first client does not pay for cold memory.
Status WorkerServer::WarmUp(const std::function<bool()>& is_cancelled) {
  SequenceSpec spec;
  spec.request_id = "warm-up";
  spec.prompt = {0};
  spec.cache_salt = "warm-up";  // no client's prompt begins with what this leaves behind
  spec.max_tokens = 1;
  spec.sampling.temperature = 0;
  if (opened_.device_model !=
      nullptr) {  // kernels are loaded and timed when they first run: of a prompt, of steps
    spec.prompt.resize(std::min<size_t>(kWarmUpTokens, opened_.context_length / 2));
    spec.max_tokens = std::min<uint32_t>(4, opened_.context_length / 2);
    spec.ignore_eos = true;
    spec.sampling.temperature = 1;
    spec.top_logprobs = 1;
  }
  auto sink = std::make_shared<CollectingSink>();
  RETURN_IF_ERROR(opened_.engine->Submit(std::move(spec), sink));
  while (!sink->HasEndedWithin(kCancelPoll)) {
    if (is_cancelled && is_cancelled()) return Cancelled("the warm-up was cancelled");
  }
  const Status error = sink->Wait().result.error;
  const Status lost = device_error();
  if (lost.ok()) return Annotate(error, "warm-up");
  return WithReason(Unavailable("warm-up: the device, or a rank of the group, is lost: ", Message(lost)),
                    Reason(error));
}

// On the engine's loop thread, which looks after a group from its first moment on.
void WorkerServer::OnDeviceLost(const Status& error) {
  WorkerService* const service = opened_service_;
  if (service == nullptr) return;  // Open finds the error
  Log(LogLevel::kError, "worker_device_lost", {{"device", opened_.device}, {"error", Message(error)}});
  service->Drain([] {});  // routers hear of it at once
}

void WorkerServer::OnStepHangs(Duration since_last_step) {
  const double seconds = Seconds(since_last_step);
  Log(LogLevel::kError, "worker_step_hangs", {{"device", opened_.device}, {"seconds", seconds}});
  if (!on_step_hangs_) return;
  on_step_hangs_(WithReason(
      Unavailable("a step hangs: none has ended for ", std::llround(seconds), " s, on ", opened_.device),
      "step_hangs"));
}

void WorkerServer::OnDraining() {
  UpdateHealth();
  if (drafts_ != nullptr) drafts_->Stop();  // what it drafts would never end
}

void WorkerServer::UpdateHealth() {
  std::lock_guard lock(health_mutex_);
  if (health_ != nullptr) health_->SetServingStatus(service_->state() == v1::WORKER_STATE_READY);
}

void WorkerServer::Answer(const HttpRequest& request, HttpResponder& responder) {
  if (request.method != "GET" && request.method != "HEAD") {
    return responder.Send(405, R"({"error":"only GET and HEAD"})", "application/json",
                          {{"allow", "GET, HEAD"}});
  }
  const EngineStats stats = Stats();
  const MonoTime now = RealClock().Now();
  if (request.path == "/metrics") {
    responder.Send(200, metrics_.Render(stats, now), MetricRegistry::kContentType);
  } else if (request.path == "/healthz") {
    const bool is_alive = IsAlive(stats, now, stall_limit_);
    const Json body = {{"status", is_alive               ? "alive"
                                  : stats.is_device_lost ? "device lost"
                                                         : "stalled"},
                       {"last_step_seconds", stats.is_idle ? 0.0 : Seconds(now - stats.last_step)}};
    responder.Send(is_alive ? 200 : 503, ToJsonText(body));
  } else if (request.path == "/readyz") {
    const bool is_ready = service_->state() == v1::WORKER_STATE_READY;
    const Json body = {{"status", is_ready ? "ready" : "not ready"},
                       {"state", v1::WorkerState_Name(service_->state())}};
    responder.Send(is_ready ? 200 : 503, ToJsonText(body));
  } else {
    responder.Send(404, R"({"error":"no such path; there are /metrics, /healthz and /readyz"})");
  }
}

void WorkerServer::LogReady(double load_seconds, double warm_up_seconds) const {
  if (!opened_.device_note.empty()) {  // without the library it is what everybody expects
    Log(HasDevicePlugin() ? LogLevel::kWarn : LogLevel::kDebug, "worker_on_cpu",
        {{"reason", opened_.device_note}});
  }
  if (opened_.drafter != "none" && opened_.numerics == "auto") {
    Log(LogLevel::kWarn, "worker_drafts_change_bits",
        {{"reason", "engine.numerics: auto: what shares a step may change the last bits, and so do drafts"}});
  }
  if (!opened_.drafter_note.empty())
    Log(LogLevel::kWarn, "worker_drafter_on_cpu", {{"reason", opened_.drafter_note}});
  if (opened_.drafter_parameters > opened_.parameters) {
    Log(LogLevel::kWarn, "worker_drafter_is_larger",
        {{"reason",
          "the drafter has more parameters than the model that it drafts for: it costs more than it saves"},
         {"drafter_parameters", opened_.drafter_parameters},
         {"parameters", opened_.parameters}});
  }
  if (opened_.draft_files != nullptr) {
    Log(LogLevel::kInfo, "worker_drafter",
        {{"model", opened_.draft_files->config.name},
         {"parameters", opened_.drafter_parameters},
         {"device", opened_.drafter_device},
         {"kv_bytes", opened_.drafter_kv_bytes},
         {"kv_pool", opened_.drafter_kv_arithmetic}});
  }
  Log(LogLevel::kInfo, "worker_ready",
      {{"model", served_name_},
       {"format", opened_.files->format},
       {"parameters", opened_.parameters},
       {"weight_dtype", opened_.weight_dtype},
       {"weight_bytes", opened_.weight_bytes},
       {"file_bytes", opened_.file_bytes},
       {"hashed_bytes", opened_.hashed_bytes},
       {"device", opened_.device},
       {"threads", opened_.threads},
       {"ranks", Ranks(opened_)},
       {"tensor_parallel", TensorParallel(opened_)},
       {"pipeline_parallel", opened_.stages},
       {"compute", opened_.compute},
       {"numerics", opened_.numerics},
       {"max_sequences", opened_.max_sequences},
       {"max_step_tokens", opened_.max_step_tokens},
       {"context_length", opened_.context_length},
       {"kv_dtype", opened_.kv_dtype},
       {"kv_bytes", opened_.kv_bytes},
       {"kv_pool", opened_.kv_arithmetic},
       {"kv_host_blocks", opened_.host_blocks},
       {"prefix_cache", opened_.engine->scheduler_options().prefix_cache},
       {"drafter", opened_.drafter},
       {"grpc", grpc_address_},
       {"ops", ops_address()},
       {"load_seconds", load_seconds},
       {"load", LoadJson(opened_, warm_up_seconds)},
       {"version", kVersion}});
}

void WorkerServer::Drain(std::function<void()> done) { service_->Drain(std::move(done)); }

void WorkerServer::Stop() {
  if (service_ == nullptr || std::exchange(has_stopped_, true)) return;  // never opened, or stopped already
  // Sequences first: their calls can only end when the engine has let go of them.
  service_->Drain([] {});
  StopEngine(*opened_.engine, stall_limit_,
             [this](Duration since_last_step) { OnStepHangs(since_last_step); });
  service_->StopStreams();
  if (grpc_ != nullptr) grpc_->Shutdown(std::chrono::system_clock::now() + kCloseLimit);
  if (ops_ != nullptr) ops_->Stop(/*grace_seconds=*/1);
}

}  // namespace terrace
