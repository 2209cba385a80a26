#include "router/server/router.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>

#include "base/grpc_keepalive.h"
#include "base/grpc_tls.h"
#include "base/host_port.h"
#include "base/http_server.h"
#include "base/log.h"
#include "base/log_limit.h"
#include "base/machine.h"
#include "base/version.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/impl/server_builder_option.h"
#include "grpcpp/resource_quota.h"
#include "router/api/grpc_service.h"
#include "router/api/openai_format.h"
#include "router/api/openai_http.h"
#include "router/dispatch/poison.h"
#include "router/server/cores.h"
#include "router/server/ops_handler.h"

namespace terrace {
namespace {

constexpr size_t kHttpThreads = 2;
constexpr double kFlushSeconds = 1;           // for the last bytes of answers when a listener stops
constexpr int kClientTimeoutMillis = 20'000;  // to answer a ping
constexpr int kMaxMetadataBytes = 16 << 10;   // of a call; more: RESOURCE_EXHAUSTED
constexpr int kMaxPingStrikes = 2;            // pings that come too early; more: the client is sent away
constexpr auto kHousekeeping = std::chrono::milliseconds(100);
constexpr auto kReloadPatience = std::chrono::seconds(10);
constexpr char kInferenceService[] = "terrace.v1.Inference";

// All processors that it may use but the one that passes answers on.
size_t TextThreads() { return std::clamp<size_t>(UsableCores(), 2, 9) - 1; }

// What was read of the files of both uses; null: plain text.
struct RouterTls {
  std::shared_ptr<TlsSource> listen, workers;
};

StatusOr<std::shared_ptr<TlsSource>> OpenTls(const std::optional<TlsFiles>& files, const char* path,
                                             const char* use, MetricRegistry& metrics) {
  if (!files.has_value()) return nullptr;
  auto source = TlsSource::Open(*files, {.use = use, .metrics = &metrics});
  if (!source.ok()) return Annotate(source.status(), path);
  return source;
}

// gRPC's library of reflection adds it to every server of the process: this takes it out of one.
class WithoutReflection : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    const std::string name = grpc::reflection::ProtoServerReflectionPlugin().name();
    std::erase_if(*plugins, [&](const auto& plugin) { return plugin->name() == name; });
  }
};

// What wakes a thread before its time. Thread-safe.
class Waker {
 public:
  void Wake() {
    {
      std::lock_guard lock(mutex_);
      is_woken_ = true;
    }
    changed_.notify_all();
  }
  void WaitFor(const std::stop_token& stop, Duration duration) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, stop, duration, [this] { return is_woken_; });
    is_woken_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable_any changed_;
  bool is_woken_ = false;  // GUARDED_BY(mutex_)
};

class RealRouter : public Router {
 public:
  RealRouter(const RouterOptions& options, RouterTls tls, MetricRegistry& metrics)
      : options_(options),
        tls_(std::move(tls)),
        metrics_(metrics),
        started_unix_seconds_(std::chrono::duration_cast<std::chrono::seconds>(
                                  std::chrono::system_clock::now().time_since_epoch())
                                  .count()),
        ops_handler_(metrics, cores_, RealClock(), [this] { BeginDrain(); }) {
    metrics.GetGauge("terrace_build_info", std::vector<std::string>{kVersion, "router"}).Set(1);
  }

  ~RealRouter() override {
    TakeNoMore();
    {
      std::lock_guard lock(health_mutex_);
      health_ = nullptr;
    }
    if (grpc_ != nullptr) grpc_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
    if (http_ != nullptr) http_->Stop(kFlushSeconds);
    if (ops_ != nullptr) ops_->Stop(0);
    // Closed connections have cancelled their requests; each ends with its worker call, which refers to the
    // parts here.
    while (in_flight() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    housekeeper_ = {};  // stops and joins
  }

  Status Start() {
    ASSIGN_OR_RETURN(auto core, MakeCore(options_));
    Use(std::move(core));
    housekeeper_ = std::jthread([this](const std::stop_token& stop) { KeepHouse(stop); });
    RETURN_IF_ERROR(ListenOps());
    RETURN_IF_ERROR(ListenHttp());
    return ListenGrpc();
  }

  Status Reload(const RouterOptions& options, const std::function<bool()>& is_interrupted) override {
    RETURN_IF_ERROR(CheckReloadable(options_, options));
    ASSIGN_OR_RETURN(auto core, MakeCore(options));
    const auto current = cores_.Current();
    const MonoTime limit = RealClock().Now() + kReloadPatience;
    Status as_ready = CheckAsReady(*current->View(), *core->View());
    while (!as_ready.ok() && RealClock().Now() < limit && !is_interrupted()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      as_ready = CheckAsReady(*current->View(), *core->View());
    }
    if (as_ready.ok()) {
      Use(std::move(core));
    } else {
      cores_.Retire(std::move(core));
    }
    return as_ready;
  }

  Status ReloadManifests() override { return cores_.Current()->ReloadManifests(); }
  bool HasUnreadableManifest() const override { return cores_.Current()->HasUnreadableManifest(); }

  std::string http_address() const override { return http_ == nullptr ? "" : http_->address(); }
  std::string grpc_address() const override { return grpc_address_; }
  std::string ops_address() const override { return ops_ == nullptr ? "" : ops_->address(); }

  void BeginDrain() override {
    if (!is_draining_) Log(LogLevel::kInfo, "router_draining", {{"in_flight", in_flight()}});
    TakeNoMore();
  }
  void TakeNoMore() {
    is_draining_ = true;
    ops_handler_.SetDraining();
    book_.Close();
    UpdateHealth();
  }
  void EndRequests() override {
    BeginDrain();
    book_.RefuseWaiting();  // before those that run make room
    for (const auto& core : cores_.All()) core->EndRequests();
  }
  double drain_seconds() const override { return cores_.Current()->options().drain_seconds; }
  size_t in_flight() const override {
    const size_t pooled = text_pool_.size();  // first: they go from the pool to the cores
    return pooled + cores_.in_flight();
  }

 private:
  StatusOr<std::shared_ptr<Core>> MakeCore(const RouterOptions& options) {
    const auto current = cores_.Current();
    return Core::Make(
        options, metrics_,
        {ledger_, book_, labels_, quarantine_, tls_.workers, [waker = waker_] { waker->Wake(); }},
        current.get());
  }

  // New requests go to `core` from now on.
  void Use(std::shared_ptr<Core> core) {
    const auto run_aside = [this](const std::string& tenant, std::function<void()> task) {
      return text_pool_.Post(tenant, std::move(task));
    };
    auto api =
        core->MakeApiOptions([this] { return IsReadyNow(); }, run_aside, started_unix_seconds_, api_seed_);
    core->TakeCharge();
    text_pool_.SetMaxWaiting(core->options().max_queued);
    metrics_.GetGauge("terrace_config_hash").Set(static_cast<double>(core->options().config_hash));
    cores_.Replace(std::move(core));
    std::lock_guard lock(api_mutex_);
    api_options_ = std::move(api);
  }

  ApiOptionsSource MakeApiOptionsSource() {
    return [this] {
      std::lock_guard lock(api_mutex_);
      return api_options_;
    };
  }

  bool IsReadyNow() const {
    const auto core = cores_.Current();  // null when none could be made
    return core != nullptr && !is_draining_ && IsReady(*core->View());
  }

  void KeepHouse(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      waker_->WaitFor(stop, kHousekeeping);
      for (const auto& core : cores_.All()) core->Housekeep();
      UpdateHealth();
      metrics_.GetGauge("terrace_texts_waiting").Set(static_cast<double>(text_pool_.size()));
      CountDroppedLogLines();
      BuryIdleCores();
    }
  }

  void CountDroppedLogLines() {
    const uint64_t dropped = DroppedLogLines();
    metrics_.GetCounter("terrace_log_dropped_total")
        .Add(static_cast<double>(dropped - std::exchange(told_dropped_lines_, dropped)));
  }

  // On a thread of its own: a cluster's end may wait for a name server.
  void BuryIdleCores() {
    if (is_burying_) return;
    auto idle = cores_.TakeIdle();
    if (idle.empty()) return;
    is_burying_ = true;
    undertaker_ = std::jthread([this, idle = std::move(idle)]() mutable {
      idle.clear();
      is_burying_ = false;
    });
  }

  Status ListenOps() {
    if (options_.ops.empty()) return {};
    auto server =
        HttpServer::Start({.address = options_.ops, .max_body_bytes = 0, .error_body = HttpErrorBody},
                          [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
                            ops_handler_.Handle(request, *responder);
                          });
    if (!server.ok()) return Annotate(server.status(), "listen.ops");
    ops_ = *std::move(server);
    return {};
  }

  MetricRegistry::Counter& RejectionsOf(std::string_view reason) {
    return metrics_.GetCounter("terrace_http_rejections_total",
                               std::vector<std::string>{std::string(reason)});
  }

  // Anyone can make as many as they like: they are counted, and logged within limits.
  void OnRejected(const HttpRejection& rejection) {
    RejectionsOf(rejection.reason).Add();
    if (rejection.status == 0) return;  // it was no request yet, or has its line in the log
    const auto left_out = rejections_log_.Take(RealClock().Now());
    if (!left_out.has_value()) return;
    const auto id = std::ranges::find(rejection.headers, "x-request-id", &HttpHeaders::value_type::first);
    Log(LogLevel::kInfo, "http_refused",
        {{"request_id", id == rejection.headers.end() ? "" : id->second},
         {"peer", std::string(rejection.peer)},
         {"reason", std::string(rejection.reason)},
         {"code", std::string(HttpErrorCode(rejection.status))},
         {"http_status", rejection.status},
         {"left_out", *left_out}});
  }

  void OnHttpFull() {
    metrics_.GetCounter("terrace_http_full_total").Add();
    if (const auto left_out = full_log_.Take(RealClock().Now()); left_out.has_value()) {
      Log(LogLevel::kWarn, "http_full",
          {{"max_connections", options_.http_limits.max_connections}, {"left_out", *left_out}});
    }
  }

  // gRPC clients' resets, by connection.
  void OnResetsLimited(std::string_view peer) {
    if (const auto left_out = resets_log_.Take(RealClock().Now()); left_out.has_value()) {
      Log(LogLevel::kWarn, "grpc_resets_limited",
          {{"peer", std::string(peer)},
           {"max_resets", options_.grpc_limits.max_resets},
           {"left_out", *left_out}});
    }
  }

  Status ListenHttp() {
    if (options_.http.empty()) return {};
    const HttpLimits& limits = options_.http_limits;
    HttpServerOptions http{.address = options_.http,
                           .threads = kHttpThreads,
                           .tls = tls_.listen,
                           .max_body_bytes = options_.max_body_bytes,
                           .max_buffered_body_bytes = limits.max_buffered_body_bytes,
                           .max_header_bytes = limits.max_header_bytes,
                           .max_headers = limits.max_headers,
                           .max_connections = limits.max_connections,
                           .stream_buffer_bytes = limits.stream_buffer_bytes,
                           .header_timeout_seconds = limits.header_timeout_seconds,
                           .min_body_bytes_per_second = static_cast<double>(limits.min_body_bytes_per_second),
                           .idle_timeout_seconds = limits.idle_timeout_seconds,
                           .slow_reader_seconds = limits.slow_reader_seconds,
                           .error_body = HttpErrorBody,
                           .error_headers =
                               [this] {
                                 return HttpHeaders{{"x-request-id", unread_ids_.Next()}};
                               },
                           .on_rejected = [this](const HttpRejection& rejection) { OnRejected(rejection); },
                           .on_connections = [&open = metrics_.GetGauge("terrace_http_connections")](
                                                 size_t count) { open.Set(static_cast<double>(count)); },
                           .on_full = [this] { OnHttpFull(); }};
    for (const std::string_view reason : kHttpRejections) RejectionsOf(reason);
    metrics_.GetGauge("terrace_http_connections").Set(0);
    metrics_.GetCounter("terrace_http_full_total");
    auto server = HttpServer::StartByHead(
        std::move(http), MakeOpenAiHandler(dispatcher_, MakeApiOptionsSource(), RealClock()));
    if (!server.ok()) return Annotate(server.status(), "listen.http");
    http_ = *std::move(server);
    return {};
  }

  Status ListenGrpc() {
    if (options_.grpc.empty()) return {};
    ASSIGN_OR_RETURN(HostPort address, ParseHostPort(options_.grpc));
    grpc::EnableDefaultHealthCheckService(true);
    service_ = MakeInferenceService(dispatcher_, MakeApiOptionsSource(), RealClock(), resets_);
    grpc::ServerBuilder builder;
    if (!options_.grpc_reflection) builder.SetOption(std::make_unique<WithoutReflection>());
    int port = 0;
    builder.AddListeningPort(options_.grpc, MakeServerCredentials(tls_.listen.get()), &port);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT,
                               0);  // a taken port is an error, not a second listener
    SetKeepalive(builder, kClientTimeoutMillis);
    builder.SetMaxReceiveMessageSize(
        static_cast<int>(std::min<uint32_t>(options_.max_body_bytes, INT32_MAX)));
    builder.AddChannelArgument(
        GRPC_ARG_MAX_CONCURRENT_STREAMS,
        static_cast<int>(std::min<uint32_t>(options_.grpc_limits.max_streams, INT32_MAX)));
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, kMaxPingStrikes);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
    // For TLS and HTTP/2's settings.
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                               static_cast<int>(1000 * options_.http_limits.header_timeout_seconds));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS,
                               static_cast<int>(1000 * options_.http_limits.idle_timeout_seconds));
    grpc::ResourceQuota quota("router");
    quota.Resize(options_.grpc_limits.max_memory_bytes);
    builder.SetResourceQuota(quota);
    builder.RegisterService(service_.get());
    grpc_ = builder.BuildAndStart();
    if (grpc_ == nullptr || port == 0) {
      return Unavailable("listen.grpc: ", options_.grpc,
                         ": the address cannot be bound (is the port in use?)");
    }
    address.port = static_cast<uint16_t>(port);
    grpc_address_ = address.ToString();
    {
      std::lock_guard lock(health_mutex_);
      health_ = grpc_->GetHealthCheckService();
    }
    UpdateHealth();
    return {};
  }

  // gRPC health says what /readyz says.
  void UpdateHealth() {
    const bool is_ready = IsReadyNow();
    std::lock_guard lock(health_mutex_);
    if (health_ == nullptr || told_ready_ == is_ready) return;
    told_ready_ = is_ready;
    health_->SetServingStatus(is_ready);
    health_->SetServingStatus(kInferenceService, is_ready);
  }

  const RouterOptions options_;  // as at the start: of the listeners
  const RouterTls tls_;
  MetricRegistry& metrics_;
  const int64_t started_unix_seconds_;
  const uint64_t api_seed_ = RandomSeed();
  const std::shared_ptr<Waker> waker_ = std::make_shared<Waker>();  // clusters may outlive this router's life
  std::atomic<bool> is_draining_ = false;
  std::mutex health_mutex_;
  grpc::HealthCheckServiceInterface* health_ = nullptr;  // of grpc_; GUARDED_BY(health_mutex_)
  std::optional<bool> told_ready_;                       // GUARDED_BY(health_mutex_)
  TenantLedger ledger_{RealClock()};
  AdmissionBook book_{ledger_, RealClock()};
  const std::shared_ptr<TenantLabels> labels_ = std::make_shared<TenantLabels>();
  const std::shared_ptr<Quarantine> quarantine_ = std::make_shared<Quarantine>(RealClock());
  Cores cores_;
  TextPool text_pool_{TextThreads(), options_.max_queued};
  CurrentDispatcher dispatcher_{cores_, text_pool_};
  OpsHandler ops_handler_;
  std::mutex api_mutex_;
  std::shared_ptr<const ApiOptions> api_options_;  // GUARDED_BY(api_mutex_)
  std::atomic<bool> is_burying_ = false;
  std::jthread undertaker_;  // the housekeeper's
  std::jthread housekeeper_;
  uint64_t told_dropped_lines_ = DroppedLogLines();  // the housekeeper's
  RequestIds unread_ids_{RandomSeed()};              // of requests that HTTP itself refuses
  LogLimit rejections_log_{10, std::chrono::seconds(1)};
  LogLimit full_log_{1, std::chrono::seconds(10)}, resets_log_{10, std::chrono::seconds(1)};
  ResetLimit resets_{
      {.max_resets = options_.grpc_limits.max_resets,
       .on_reset = [&resets = metrics_.GetCounter("terrace_http_resets_total")] { resets.Add(); },
       .on_limited = [this](std::string_view peer) { OnResetsLimited(peer); }},
      RealClock()};
  std::unique_ptr<grpc::Service> service_;
  // The listeners last: they go first.
  std::unique_ptr<HttpServer> ops_, http_;
  std::unique_ptr<grpc::Server> grpc_;
  std::string grpc_address_;
};

}  // namespace

Status CheckFiles(const RouterOptions& options) {
  ASSIGN_OR_RETURN(const auto catalog,
                   ModelCatalog::Make(options.tiers, options.policies, options.default_model));
  for (const auto& files : {options.tls, options.worker_tls}) {
    if (files.has_value()) RETURN_IF_ERROR(LoadTls(*files).status());
  }
  ASSIGN_OR_RETURN(const auto gates, LoadGates(options));
  if (!options.keys_file.empty())
    RETURN_IF_ERROR(Tenants::Load(options.keys_file, options.cluster_secret_file, *catalog).status());
  for (size_t i = 0; i < gates.size(); ++i) {  // last: a router starts with these
    if (gates[i] == nullptr) continue;
    RETURN_IF_ERROR(Annotate(gates[i]->CheckAny(), Concat("tiers[", i, "].manifests")));
  }
  return {};
}

StatusOr<std::unique_ptr<Router>> Router::Start(const RouterOptions& options, MetricRegistry& metrics) {
  RouterTls tls;
  ASSIGN_OR_RETURN(tls.listen, OpenTls(options.tls, "listen.tls", "listen", metrics));
  ASSIGN_OR_RETURN(tls.workers, OpenTls(options.worker_tls, "cluster.tls", "workers", metrics));
  auto router = std::make_unique<RealRouter>(options, std::move(tls), metrics);
  RETURN_IF_ERROR(router->Start());
  return router;
}

}  // namespace terrace
