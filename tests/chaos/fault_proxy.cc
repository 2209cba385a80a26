#include "tests/chaos/fault_proxy.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>

#include <future>
#include <map>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/host_port.h"
#include "tests/chaos/proxied_connection.h"

namespace terrace {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr std::chrono::milliseconds kAcceptRetry(100);  // after an error such as "too many open files"

StatusOr<tcp::endpoint> Resolve(asio::io_context& io, const std::string& address) {
  ASSIGN_OR_RETURN(const HostPort wanted, ParseHostPort(address));
  error_code error;
  const auto found = tcp::resolver(io).resolve(wanted.host, std::to_string(wanted.port), error);
  if (error || found.empty()) return Unavailable(address, ": ", error.message());
  return found.begin()->endpoint();
}

}  // namespace

// What the calls do, each on the one thread.
class FaultProxy::Server {
 public:
  explicit Server(const Options& options) : options_(options) {
    shared_.on_closed = [this](uint64_t number) {
      connections_.erase(number);
      Accept();
    };
  }
  ~Server() {
    Do([this] {
      StopListening();
      accept_timer_.cancel();
      ForEach([](ProxiedConnection& connection) { connection.Close(); });
    });
    work_.reset();  // the thread ends when nothing is waited for any more
  }

  // Runs `work` on the thread and waits for it.
  template <typename Work>
  std::invoke_result_t<Work> Do(Work work) {
    const auto task = std::make_shared<std::packaged_task<std::invoke_result_t<Work>()>>(std::move(work));
    auto result = task->get_future();
    asio::post(io_, [task] { (*task)(); });
    return result.get();
  }

  Status Listen() {
    ASSIGN_OR_RETURN(upstream_, Resolve(io_, options_.upstream));
    ASSIGN_OR_RETURN(const tcp::endpoint wanted, Resolve(io_, options_.listen));
    error_code error;
    reservation_.open(wanted.protocol(), error);
    if (!error) reservation_.set_option(tcp::socket::reuse_address(true), error);
    if (!error) reservation_.bind(wanted, error);
    if (!error) address_ = reservation_.local_endpoint(error);
    if (error) return Unavailable(options_.listen, ": ", error.message());
    return StartListening();
  }
  std::string address() const {  // after Listen: it changes no more
    return HostPort{.host = address_.address().to_string(), .port = address_.port()}.ToString();
  }

  void SetFaults(Direction direction, const Faults& faults) {
    faults_[direction] = faults;
    ForEach([&](ProxiedConnection& connection) { connection.SetFaults(direction, faults); });
  }
  const Faults& faults(Direction direction) const { return faults_[direction]; }
  void Arm(Direction direction, const Cut& cut) { shared_.cuts[direction] = cut; }
  void HalfClose(Direction direction) {
    ForEach([&](ProxiedConnection& connection) { connection.HalfClose(direction); });
  }
  void Reset() {
    ForEach([](ProxiedConnection& connection) { connection.Reset(); });
  }
  Status SetRefusing(bool is_refusing) {
    if (!is_refusing) return StartListening();
    StopListening();
    return {};
  }
  Status Heal() {
    shared_.cuts = {};
    for (const Direction direction : kDirections) SetFaults(direction, {});
    return StartListening();
  }
  ProxyCounters counters() const {
    ProxyCounters out = shared_.counters;
    out.open = connections_.size();
    return out;
  }

 private:
  // Any of them may close itself, or another.
  template <typename Visit>
  void ForEach(const Visit& visit) {
    const std::vector<std::pair<uint64_t, std::shared_ptr<ProxiedConnection>>> now(connections_.begin(),
                                                                                   connections_.end());
    for (const auto& [number, connection] : now) visit(*connection);
  }

  Status StartListening() {
    if (acceptor_.is_open()) return {};
    error_code error;
    acceptor_.open(address_.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(address_, error);
    if (!error) acceptor_.listen(tcp::acceptor::max_listen_connections, error);
    if (error) {
      StopListening();
      return Unavailable("cannot listen: ", error.message());
    }
    Accept();
    return {};
  }

  void StopListening() {
    error_code ignored;
    acceptor_.close(ignored);
  }

  void Accept() {
    if (is_accepting_ || !acceptor_.is_open() || connections_.size() >= options_.max_connections) return;
    is_accepting_ = true;
    acceptor_.async_accept([this](error_code error, tcp::socket client) {
      is_accepting_ = false;
      OnAccept(error, std::move(client));
    });
  }

  void OnAccept(error_code error, tcp::socket client) {
    if (error && error != asio::error::operation_aborted && error != asio::error::connection_aborted) {
      accept_timer_.expires_after(kAcceptRetry);
      return accept_timer_.async_wait([this](error_code) { Accept(); });
    }
    if (!error) {
      const uint64_t number = shared_.counters.connections++;
      const auto connection =
          std::make_shared<ProxiedConnection>(shared_, std::move(client), options_.seed, number);
      connections_.emplace(number, connection);
      for (const Direction direction : kDirections) connection->SetFaults(direction, faults_[direction]);
      connection->Start(upstream_);
    }
    Accept();  // an aborted one may have been of an earlier listener
  }

  const Options options_;
  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  tcp::endpoint upstream_, address_;
  // Bound to the address and never listening: while nobody listens, nobody else gets the port.
  tcp::socket reservation_{io_};
  tcp::acceptor acceptor_{io_};
  asio::steady_timer accept_timer_{io_};
  bool is_accepting_ = false;
  PerDirection<Faults> faults_;
  ProxiedConnection::Shared shared_;
  std::map<uint64_t, std::shared_ptr<ProxiedConnection>> connections_;  // by number
  std::jthread thread_{[this] { io_.run(); }};  // last: joined before what it uses dies
};

FaultProxy::FaultProxy(std::unique_ptr<Server> server)
    : server_(std::move(server)), address_(server_->address()) {}

FaultProxy::~FaultProxy() = default;

StatusOr<std::unique_ptr<FaultProxy>> FaultProxy::Start(const Options& options) {
  auto server = std::make_unique<Server>(options);
  RETURN_IF_ERROR(server->Do([&] { return server->Listen(); }));
  return std::unique_ptr<FaultProxy>(new FaultProxy(std::move(server)));
}

void FaultProxy::SetFaults(Direction direction, const Faults& faults) {
  server_->Do([&] { server_->SetFaults(direction, faults); });
}
Faults FaultProxy::faults(Direction direction) {
  return server_->Do([&] { return server_->faults(direction); });
}
void FaultProxy::Arm(Direction direction, const Cut& cut) {
  server_->Do([&] { server_->Arm(direction, cut); });
}
void FaultProxy::HalfClose(Direction direction) {
  server_->Do([&] { server_->HalfClose(direction); });
}
void FaultProxy::Reset() {
  server_->Do([&] { server_->Reset(); });
}
Status FaultProxy::SetRefusing(bool is_refusing) {
  return server_->Do([&] { return server_->SetRefusing(is_refusing); });
}
Status FaultProxy::Heal() {
  return server_->Do([&] { return server_->Heal(); });
}
ProxyCounters FaultProxy::counters() {
  return server_->Do([&] { return server_->counters(); });
}

}  // namespace terrace
