#include "worker/server/meet_group.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>

#include "base/build_id.h"
#include "base/descriptor.h"
#include "base/grpc_channel.h"
#include "base/grpc_keepalive.h"
#include "base/grpc_tls.h"
#include "base/host_port.h"
#include "base/log.h"
#include "base/tls_probe.h"
#include "base/version.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "worker/parallel/transport.h"
#include "worker/server/join_call.h"
#include "worker/server/ranks_service.h"

namespace terrace {
namespace {

constexpr Duration kFirstWait = std::chrono::milliseconds(100), kLongestWait = std::chrono::seconds(2);
constexpr Duration kCancelPoll = std::chrono::milliseconds(50);

using IsCancelled = std::function<bool()>;

v1::RankHello HelloOf(const GroupEndpoint& endpoint, uint32_t rank, uint32_t ranks,
                      const RankTraits& traits) {
  v1::RankHello hello;
  hello.set_protocol(v1::RANKS_PROTOCOL_CURRENT);
  hello.set_version(kVersion);
  hello.set_rank(rank);
  hello.set_ranks(ranks);
  hello.set_model_digest(traits.model_digest);
  const auto add = [&hello](std::string_view name, std::string_view value) {
    v1::RankSetting& setting = *hello.add_settings();
    setting.set_name(std::string(name));
    setting.set_value(std::string(value));
  };
  add("the build", OwnBuildId());
  add("group.transport", TransportName(endpoint.transport));
  for (const auto& [name, value] : traits.settings) add(name, value);
  return hello;
}

ConnectOptions ConnectOptionsOf(const GroupEndpoint& endpoint, const v1::RankHello& hello, std::string host) {
  return {.rank = hello.rank(), .ranks = hello.ranks(), .host = std::move(host), .timeout = endpoint.timeout};
}

bool IsSo(const IsCancelled& is_cancelled) { return is_cancelled && is_cancelled(); }

class LeaderGroup : public RankGroup {
 public:
  LeaderGroup(const v1::RankHello& hello, IsCancelled is_cancelled)
      : is_cancelled_(std::move(is_cancelled)), service_(hello) {}
  ~LeaderGroup() override {
    communicator_ = nullptr;  // its end, which says more, is heard of before the streams'
    service_.Stop();
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }

  Status Listen(const std::string& leader, std::shared_ptr<TlsSource> tls) {
    tls_ = std::move(tls);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(ListenAddress(leader), MakeServerCredentials(tls_.get()), &port);
    builder.RegisterService(&service_);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    SetKeepalive(builder);  // a rank that is gone without a word is missed while the others load
    server_ = builder.BuildAndStart();
    if (server_ != nullptr && port != 0) return Status();
    return WithReason(Unavailable("cannot listen on group.leader, ", leader,
                                  ": the port is in use, or it is no address of this machine"),
                      "address_unavailable");
  }
  Status Connect(Transport transport, ConnectOptions options) {
    options.find_end = [this] { return IsSo(is_cancelled_) ? Cancelled("interrupted") : FindLost(); };
    ASSIGN_OR_RETURN(communicator_, terrace::Connect(transport, options, [this](const std::string& mine) {
                       return service_.Tell(mine, is_cancelled_);
                     }));
    return Status();
  }

  Communicator& communicator() override { return *communicator_; }
  Status AwaitAll() override { return service_.Tell("", is_cancelled_).status(); }
  Status FindLost() override { return service_.FindLost(); }

 private:
  const IsCancelled is_cancelled_;
  RanksService service_;
  std::shared_ptr<TlsSource> tls_;  // null: plain text
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Communicator> communicator_;
};

class FollowerGroup : public RankGroup {
 public:
  FollowerGroup(std::unique_ptr<JoinCall> call, std::unique_ptr<Communicator> communicator,
                IsCancelled is_cancelled)
      : is_cancelled_(std::move(is_cancelled)),
        call_(std::move(call)),
        communicator_(std::move(communicator)) {}

  Communicator& communicator() override { return *communicator_; }
  Status AwaitAll() override { return call_->Tell("", is_cancelled_).status(); }
  Status FindLost() override { return call_->FindEnd(); }

 private:
  const IsCancelled is_cancelled_;
  const std::unique_ptr<JoinCall> call_;
  const std::unique_ptr<Communicator> communicator_;
};

// This machine's address on the way to `leader`. Nothing is sent.
StatusOr<std::string> HostTowards(const HostPort& leader) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(leader.host.c_str(), std::to_string(leader.port).c_str(), &hints, &found);
  if (error != 0) return Unavailable("cannot resolve ", leader.host, ": ", gai_strerror(error));
  sockaddr_storage own = {};
  socklen_t size = sizeof(own);
  const Descriptor way(socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const bool is_known = way.is_open() && connect(way.number(), found->ai_addr, found->ai_addrlen) == 0 &&
                        getsockname(way.number(), reinterpret_cast<sockaddr*>(&own), &size) == 0;
  const int unknown = errno;
  freeaddrinfo(found);
  if (!is_known) return Unavailable("no way to ", leader.ToString(), ": ", std::strerror(unknown));
  char host[NI_MAXHOST];
  const int unnamed = getnameinfo(reinterpret_cast<const sockaddr*>(&own), size, host, sizeof(host), nullptr,
                                  0, NI_NUMERICHOST);
  if (unnamed != 0) return Unavailable("getnameinfo: ", gai_strerror(unnamed));
  return std::string(host);
}

// Null without files.
StatusOr<std::shared_ptr<TlsSource>> OpenTls(const GroupEndpoint& endpoint) {
  if (!endpoint.tls.has_value()) return std::shared_ptr<TlsSource>();
  auto source = TlsSource::Open(*endpoint.tls, {.use = "ranks"});
  if (!source.ok()) return Annotate(source.status(), "group.tls");
  return source;
}

// Behind an attempt that failed: a leader that is there, and speaks otherwise, would not let this rank in
// however often it came.
Status CheckSpeaksAlike(const GroupEndpoint& endpoint, const IsCancelled& is_cancelled) {
  const StatusOr<bool> leader_speaks_tls = SpeaksTls(endpoint.leader, is_cancelled);
  if (!leader_speaks_tls.ok() || *leader_speaks_tls == endpoint.tls.has_value()) return Status();
  return WithReason(*leader_speaks_tls ? FailedPrecondition("group.tls: is not set here, but the leader at ",
                                                            endpoint.leader, " speaks TLS")
                                       : FailedPrecondition("group.tls: is set here, but the leader at ",
                                                            endpoint.leader, " speaks plain text"),
                    "ranks_differ");
}

// One attempt of a rank that does not lead. `may_try_again`: the leader was not there, or not ready for it.
StatusOr<std::unique_ptr<RankGroup>> TryToJoin(const GroupEndpoint& endpoint,
                                               const PeerChannelOptions& channel, const v1::RankHello& hello,
                                               const IsCancelled& is_cancelled, bool& may_try_again) {
  may_try_again = true;
  std::string host = endpoint.host;
  if (host.empty()) {
    ASSIGN_OR_RETURN(const HostPort leader, ParseHostPort(endpoint.leader));
    ASSIGN_OR_RETURN(host, HostTowards(leader));
  }
  may_try_again = false;
  auto call = std::make_unique<JoinCall>(MakePeerChannel(endpoint.leader, channel), hello);
  ConnectOptions options = ConnectOptionsOf(endpoint, hello, host);
  options.find_end = [&] { return IsSo(is_cancelled) ? Cancelled("interrupted") : call->FindEnd(); };
  ASSIGN_OR_RETURN(auto communicator, Connect(endpoint.transport, options, [&](const std::string& mine) {
                     auto told = call->Tell(mine, is_cancelled);
                     may_try_again = told.status().code() == StatusCode::kUnavailable;
                     return told;
                   }));
  return std::unique_ptr<RankGroup>(
      std::make_unique<FollowerGroup>(std::move(call), std::move(communicator), is_cancelled));
}

// False when it was cancelled.
bool Sleep(Duration wait, const IsCancelled& is_cancelled) {
  for (; wait > Duration(0); wait -= kCancelPoll) {
    if (IsSo(is_cancelled)) return false;
    std::this_thread::sleep_for(std::min(wait, kCancelPoll));
  }
  return true;
}

StatusOr<std::unique_ptr<RankGroup>> JoinLeader(const GroupEndpoint& endpoint, const v1::RankHello& hello,
                                                const IsCancelled& is_cancelled) {
  ASSIGN_OR_RETURN(const auto tls, OpenTls(endpoint));
  const PeerChannelOptions channel{.credentials = MakeChannelCredentials(tls.get()),
                                   .server_name = endpoint.server_name};
  std::string told;  // in the log: every kind of failure once
  for (Duration wait = kFirstWait;; wait = std::min(2 * wait, kLongestWait)) {
    bool may_try_again = false;
    auto joined = TryToJoin(endpoint, channel, hello, is_cancelled, may_try_again);
    if (joined.ok() || !may_try_again) return joined;
    RETURN_IF_ERROR(CheckSpeaksAlike(endpoint, is_cancelled));  // each time: it may have got no answer before
    if (std::string error = Message(joined.status()); error != told) {
      told = std::move(error);
      Log(LogLevel::kInfo, "worker_waits_for_leader", {{"leader", endpoint.leader}, {"error", told}});
    }
    if (!Sleep(wait, is_cancelled)) return Cancelled("interrupted");
  }
}

StatusOr<std::unique_ptr<RankGroup>> Lead(const GroupEndpoint& endpoint, const v1::RankHello& hello,
                                          const IsCancelled& is_cancelled) {
  ASSIGN_OR_RETURN(const HostPort leader, ParseHostPort(endpoint.leader));
  ASSIGN_OR_RETURN(auto tls, OpenTls(endpoint));
  auto group = std::make_unique<LeaderGroup>(hello, is_cancelled);
  RETURN_IF_ERROR(group->Listen(endpoint.leader, std::move(tls)));
  RETURN_IF_ERROR(
      group->Connect(endpoint.transport,
                     ConnectOptionsOf(endpoint, hello, endpoint.host.empty() ? leader.host : endpoint.host)));
  return std::unique_ptr<RankGroup>(std::move(group));
}

// Who asked for TLS may take it that all is behind it.
void WarnOfPlainText(const GroupEndpoint& endpoint) {
  const StatusOr<HostPort> leader = ParseHostPort(endpoint.leader);
  if (!endpoint.tls.has_value() || !leader.ok() || leader->is_loopback()) return;
  Log(LogLevel::kWarn, "worker_group_plain_text",
      {{"leader", endpoint.leader},
       {"reason", "group.tls is of the meeting alone: steps go between ranks over TCP without it"}});
}

bool IsNumeric(const std::string& host) {
  in6_addr address;  // large enough for both
  return inet_pton(AF_INET, host.c_str(), &address) == 1 || inet_pton(AF_INET6, host.c_str(), &address) == 1;
}

}  // namespace

std::string ListenAddress(const std::string& leader) {
  const StatusOr<HostPort> parsed = ParseHostPort(leader);
  if (!parsed.ok() || parsed->is_loopback() || IsNumeric(parsed->host)) return leader;
  return Concat("[::]:", parsed->port);
}

StatusOr<std::unique_ptr<RankGroup>> MeetGroup(const GroupEndpoint& endpoint, uint32_t rank, uint32_t ranks,
                                               const RankTraits& traits,
                                               const std::function<bool()>& is_cancelled) {
  Log(LogLevel::kInfo, "worker_group_forms", {{"rank", rank}, {"ranks", ranks}, {"leader", endpoint.leader}});
  WarnOfPlainText(endpoint);
  const v1::RankHello hello = HelloOf(endpoint, rank, ranks, traits);
  auto group = rank == 0 ? Lead(endpoint, hello, is_cancelled) : JoinLeader(endpoint, hello, is_cancelled);
  RETURN_IF_ERROR(group.status());
  Log(LogLevel::kInfo, "worker_group_connected", {{"rank", rank}, {"ranks", ranks}});
  return group;
}

}  // namespace terrace
