#include "router/server/router.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "base/host_port.h"
#include "base/http_server.h"
#include "base/log.h"
#include "base/version.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "router/api/grpc_service.h"
#include "router/api/openai_format.h"
#include "router/api/openai_http.h"
#include "router/cluster/cluster.h"
#include "router/server/ops_handler.h"

namespace terrace {
namespace {

constexpr size_t kHttpThreads = 2;
constexpr double kFlushSeconds = 1;  // for the last bytes of answers when a listener stops
constexpr char kInferenceService[] = "terrace.v1.Inference";

uint64_t RandomSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

Duration FromSeconds(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

ClusterOptions MakeClusterOptions(const RouterOptions& options,
                                  std::function<void(const ClusterView&)> on_change) {
  ClusterOptions out{.connect_backoff = FromSeconds(options.connect_backoff_seconds),
                     .watch_timeout = FromSeconds(options.watch_timeout_seconds),
                     .dns_refresh = FromSeconds(options.dns_refresh_seconds),
                     .seed = RandomSeed(),
                     .on_change = std::move(on_change)};
  for (size_t i = 0; i < options.tiers.size(); ++i) {
    auto discovery = MakeDiscovery(options.workers[i]);
    CHECK(discovery.ok(), "options check workers: ", Message(discovery.status()));
    out.tiers.push_back({options.tiers[i].name, *std::move(discovery)});
  }
  return out;
}

// One tier that can answer is enough.
bool IsReady(const ClusterView& view) {
  return std::any_of(view.tiers.begin(), view.tiers.end(),
                     [](const auto& tier) { return tier.ready_replicas() > 0; });
}

std::vector<std::string> TierNames(const RouterOptions& options) {
  std::vector<std::string> out;
  for (const CatalogTier& tier : options.tiers) out.push_back(tier.name);
  return out;
}

class RealRouter : public Router {
 public:
  RealRouter(const RouterOptions& options, MetricRegistry& metrics, std::unique_ptr<ModelCatalog> catalog)
      : options_(options),
        catalog_(std::move(catalog)),
        balancer_(MakeBalancer(options.balance)),
        admission_(options.max_in_flight),
        recorder_(metrics, TierNames(options)),
        cluster_(MakeClusterOptions(options, [this](const ClusterView& view) { UpdateHealth(view); })),
        dispatcher_(MakeDispatcher(
            {cluster_, *catalog_, *balancer_, admission_, recorder_, RealClock(), RandomSeed()})),
        ops_handler_({metrics, cluster_, *catalog_, *dispatcher_, admission_, RealClock()}) {
    metrics.GetGauge("terrace_build_info", std::vector<std::string>{kVersion, "router"}).Set(1);
  }

  ~RealRouter() override {
    BeginDrain();
    {
      std::lock_guard lock(health_mutex_);
      health_ = nullptr;
    }
    if (grpc_ != nullptr) grpc_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
    if (http_ != nullptr) http_->Stop(kFlushSeconds);
    if (ops_ != nullptr) ops_->Stop(0);
    // Closed connections have cancelled their requests; each ends with its worker call, which refers to the
    // parts here.
    while (admission_.in_flight() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  Status Listen() {
    RETURN_IF_ERROR(ListenOps());
    RETURN_IF_ERROR(ListenHttp());
    return ListenGrpc();
  }

  std::string http_address() const override { return http_ == nullptr ? "" : http_->address(); }
  std::string grpc_address() const override { return grpc_address_; }
  std::string ops_address() const override { return ops_ == nullptr ? "" : ops_->address(); }

  void BeginDrain() override {
    is_draining_ = true;
    ops_handler_.SetDraining();
    admission_.Close();
    UpdateHealth(*cluster_.View());
  }
  size_t in_flight() const override { return admission_.in_flight(); }

 private:
  ApiOptions MakeApiOptions() const {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return {.default_timeout_seconds = options_.default_timeout_seconds,
            .max_timeout_seconds = options_.max_timeout_seconds,
            .default_model = (*catalog_->Find(""))->id,
            .created_unix_seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count(),
            .seed = RandomSeed()};
  }

  Status ListenOps() {
    if (options_.ops.empty()) return {};
    auto server = HttpServer::Start({.address = options_.ops, .error_body = HttpErrorBody},
                                    [this](HttpRequest request, std::shared_ptr<HttpResponder> responder) {
                                      ops_handler_.Handle(request, *responder);
                                    });
    if (!server.ok()) return Annotate(server.status(), "listen.ops");
    ops_ = *std::move(server);
    return {};
  }

  Status ListenHttp() {
    if (options_.http.empty()) return {};
    HttpServerOptions http{.address = options_.http,
                           .threads = kHttpThreads,
                           .max_body_bytes = options_.max_body_bytes,
                           .error_body = HttpErrorBody,
                           .error_headers = [this] {
                             return HttpHeaders{{"x-request-id", unread_ids_.Next()}};
                           }};
    auto server =
        HttpServer::Start(std::move(http), MakeOpenAiHandler(*dispatcher_, MakeApiOptions(), RealClock()));
    if (!server.ok()) return Annotate(server.status(), "listen.http");
    http_ = *std::move(server);
    return {};
  }

  Status ListenGrpc() {
    if (options_.grpc.empty()) return {};
    ASSIGN_OR_RETURN(HostPort address, ParseHostPort(options_.grpc));
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    service_ = MakeInferenceService(*dispatcher_, MakeApiOptions(), RealClock());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(options_.grpc, grpc::InsecureServerCredentials(), &port);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT,
                               0);  // a taken port is an error, not a second listener
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.SetMaxReceiveMessageSize(
        static_cast<int>(std::min<uint32_t>(options_.max_body_bytes, INT32_MAX)));
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
    UpdateHealth(*cluster_.View());
    return {};
  }

  // gRPC health says what /readyz says.
  void UpdateHealth(const ClusterView& view) {
    std::lock_guard lock(health_mutex_);
    const bool is_ready = IsReady(view) && !is_draining_;
    if (health_ == nullptr) return;
    health_->SetServingStatus(is_ready);
    health_->SetServingStatus(kInferenceService, is_ready);
  }

  const RouterOptions options_;
  std::atomic<bool> is_draining_ = false;
  std::mutex health_mutex_;
  grpc::HealthCheckServiceInterface* health_ = nullptr;  // of grpc_; GUARDED_BY(health_mutex_)
  const std::unique_ptr<ModelCatalog> catalog_;
  const std::unique_ptr<Balancer> balancer_;
  Admission admission_;
  Recorder recorder_;
  Cluster cluster_;
  const std::unique_ptr<Dispatcher> dispatcher_;
  OpsHandler ops_handler_;
  RequestIds unread_ids_{RandomSeed()};  // of requests that HTTP itself refuses
  std::unique_ptr<grpc::Service> service_;
  // The listeners last: they go first.
  std::unique_ptr<HttpServer> ops_, http_;
  std::unique_ptr<grpc::Server> grpc_;
  std::string grpc_address_;
};

}  // namespace

StatusOr<std::unique_ptr<Router>> Router::Start(const RouterOptions& options, MetricRegistry& metrics) {
  ASSIGN_OR_RETURN(auto catalog, ModelCatalog::Make(options.tiers, options.policies, options.default_model));
  auto router = std::make_unique<RealRouter>(options, metrics, std::move(catalog));
  RETURN_IF_ERROR(router->Listen());
  return router;
}

}  // namespace terrace
