#include "worker/parallel/tcp_mesh.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace terrace {
namespace {

constexpr std::string_view kToldPrefix = "terrace-tcp ";       // then the token, the port and the host
constexpr Duration kAskEvery = std::chrono::milliseconds(50);  // ConnectOptions::find_end
constexpr size_t kMostUnknown = 128;  // connections that have not said who they are; the oldest one goes

using Token = uint64_t;

// What each side of a connection says first, the one that connects before the one that listens. Numbers are
// as the machine has them, as all that ranks send is.
struct Hello {
  char protocol[8] = {'t', 'e', 'r', 'r', 'a', 'c', 'e', '1'};
  uint32_t from = 0, to = 0;
  Token token = 0;  // that rank `to` told
};
static_assert(sizeof(Hello) == 24);

struct Address {
  Token token = 0;
  uint16_t port = 0;
  std::string host;  // a numeric address
};

std::string Tell(const Address& address) {
  return Concat(kToldPrefix, address.token, " ", address.port, " ", address.host);
}

// What is in front of the next space.
template <typename Number>
bool TakeNumber(std::string_view& text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const auto digits = static_cast<size_t>(end - text.data());
  if (error != std::errc() || digits == text.size() || text[digits] != ' ') return false;
  text.remove_prefix(digits + 1);
  return true;
}

StatusOr<Address> ParseTold(std::string_view told, uint32_t rank) {
  Address out;
  const bool has_prefix = told.starts_with(kToldPrefix);
  if (has_prefix) told.remove_prefix(kToldPrefix.size());
  if (!has_prefix || !TakeNumber(told, out.token) || !TakeNumber(told, out.port) || told.empty())
    return Unavailable("rank ", rank, " told no address for TCP: is its group.transport another one?");
  out.host = told;
  return out;
}

using AddressList = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;

StatusOr<AddressList> Resolve(const std::string& host, uint16_t port, int flags) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0) return Unavailable("cannot resolve ", host, ": ", gai_strerror(error));
  return AddressList(found, &freeaddrinfo);
}

Descriptor OpenSocket(int family) {
  return Descriptor(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

// Whether the other end is on this machine, at the same address of it.
bool IsLocal(const Descriptor& socket) {
  sockaddr_storage own = {}, other = {};
  socklen_t own_size = sizeof(own), other_size = sizeof(other);
  if (getsockname(socket.number(), reinterpret_cast<sockaddr*>(&own), &own_size) != 0 ||
      getpeername(socket.number(), reinterpret_cast<sockaddr*>(&other), &other_size) != 0 ||
      own.ss_family != other.ss_family)
    return false;
  if (own.ss_family == AF_INET) {
    return reinterpret_cast<const sockaddr_in&>(own).sin_addr.s_addr ==
           reinterpret_cast<const sockaddr_in&>(other).sin_addr.s_addr;
  }
  return std::memcmp(&reinterpret_cast<const sockaddr_in6&>(own).sin6_addr,
                     &reinterpret_cast<const sockaddr_in6&>(other).sin6_addr, sizeof(in6_addr)) == 0;
}

// What makes a connection faster; without it works too.
void SetOptions(const Descriptor& socket) {
  const int on = 1;
  setsockopt(socket.number(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  // BBR, which a machine may have as its default, sends at a pace that it takes from what it measured, and
  // that is too slow between processes of one machine, who lose nothing. Every system has Reno.
  constexpr char kReno[] = "reno";
  if (IsLocal(socket)) setsockopt(socket.number(), IPPROTO_TCP, TCP_CONGESTION, kReno, sizeof(kReno) - 1);
}

// A hello as it comes in, in pieces.
struct HelloReader {
  Hello hello;
  size_t got = 0;

  bool is_whole() const { return got == sizeof(hello); }
  // False when the connection is over. Takes nothing that follows the hello.
  bool Read(const Descriptor& socket) {
    char* const into = reinterpret_cast<char*>(&hello);
    const ssize_t bytes = recv(socket.number(), into + got, sizeof(hello) - got, MSG_DONTWAIT);
    if (bytes < 0) return WouldBlock();
    got += static_cast<size_t>(bytes);
    return bytes > 0;
  }
};

class Mesh {
 public:
  explicit Mesh(const ConnectOptions& options) : options_(options), sockets_(options.ranks) {}

  StatusOr<std::string> Listen() {
    if (getrandom(&own_token_, sizeof(own_token_), 0) != sizeof(own_token_))
      return Unavailable("getrandom: ", std::strerror(errno));
    const Status status = ListenAt(options_.host);
    if (!status.ok()) return Annotate(status, Concat("cannot listen on ", options_.host));
    sockaddr_storage own = {};
    socklen_t size = sizeof(own);
    char host[NI_MAXHOST], port[NI_MAXSERV];
    auto* const address = reinterpret_cast<sockaddr*>(&own);
    if (getsockname(listener_.number(), address, &size) != 0)
      return Unavailable("getsockname: ", std::strerror(errno));
    const int error =
        getnameinfo(address, size, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
    if (error != 0) return Unavailable("getnameinfo: ", gai_strerror(error));
    return Tell(
        {.token = own_token_, .port = static_cast<uint16_t>(std::strtoul(port, nullptr, 10)), .host = host});
  }

  StatusOr<std::vector<Descriptor>> Connect(const std::vector<std::string>& told) {
    if (told.size() != options_.ranks)
      return Unavailable("the rendezvous told of ", told.size(), " ranks, not ", options_.ranks);
    deadline_ = RealClock().Now() + options_.connect_timeout;
    for (uint32_t i = 0; i < options_.ranks; ++i) {
      addresses_.emplace_back();
      if (i == options_.rank) continue;
      ASSIGN_OR_RETURN(addresses_[i], ParseTold(told[i], i));
    }
    // A rank answers once it is connected to those before it: rank 0 does at once, so all do.
    for (uint32_t i = 0; i < options_.rank; ++i) {
      const Status status = ConnectTo(i);
      if (!status.ok()) return Annotate(status, Concat("cannot connect to rank ", i));
    }
    RETURN_IF_ERROR(TakeOthers());
    for (const Descriptor& socket : sockets_) {
      if (socket.is_open()) SetOptions(socket);
    }
    return std::move(sockets_);
  }

 private:
  Status ListenAt(const std::string& host) {
    ASSIGN_OR_RETURN(const AddressList found, Resolve(host, 0, 0));
    int error = 0;
    for (const addrinfo* each = found.get(); each != nullptr; each = each->ai_next) {
      listener_ = OpenSocket(each->ai_family);
      if (listener_.is_open() && bind(listener_.number(), each->ai_addr, each->ai_addrlen) == 0 &&
          listen(listener_.number(), SOMAXCONN) == 0)
        return Status();
      error = errno;
    }
    return Unavailable(std::strerror(error));
  }

  // False when the time is over.
  StatusOr<bool> Wait(std::vector<pollfd>& set) const {
    while (true) {
      if (options_.find_end) RETURN_IF_ERROR(options_.find_end());
      const Duration left = deadline_ - RealClock().Now();
      if (left <= Duration(0)) return false;
      if (Poll(set, std::min(left, kAskEvery)) > 0) return true;
    }
  }
  // An error, too, when the time is over.
  Status Wait(const Descriptor& socket, short events) const {
    std::vector<pollfd> set = {{.fd = socket.number(), .events = events, .revents = 0}};
    ASSIGN_OR_RETURN(const bool is_in_time, Wait(set));
    return is_in_time ? Status() : Unavailable("not within ", Seconds(options_.connect_timeout), " s");
  }

  Hello HelloTo(uint32_t rank) const {
    return {.from = options_.rank, .to = rank, .token = addresses_[rank].token};
  }
  // Whether it is of a rank of this group, and for this one.
  bool IsForThisRank(const Hello& hello) const {
    return std::ranges::equal(hello.protocol, Hello().protocol) && hello.to == options_.rank &&
           hello.from < options_.ranks && hello.token == own_token_;
  }
  // A new connection has room for it.
  static bool Say(const Descriptor& socket, const Hello& hello) {
    return send(socket.number(), &hello, sizeof(hello), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(hello);
  }

  Status ConnectTo(uint32_t rank) {
    ASSIGN_OR_RETURN(const AddressList found,
                     Resolve(addresses_[rank].host, addresses_[rank].port, AI_NUMERICHOST));
    Descriptor socket = OpenSocket(found->ai_family);
    if (!socket.is_open()) return Unavailable(std::strerror(errno));
    if (connect(socket.number(), found->ai_addr, found->ai_addrlen) != 0) {
      if (errno != EINPROGRESS && errno != EINTR) return Unavailable(std::strerror(errno));
      RETURN_IF_ERROR(Wait(socket, POLLOUT));
      int error = 0;
      socklen_t size = sizeof(error);
      getsockopt(socket.number(), SOL_SOCKET, SO_ERROR, &error, &size);
      if (error != 0) return Unavailable(std::strerror(error));
    }
    if (!Say(socket, HelloTo(rank))) return Unavailable(std::strerror(errno));
    HelloReader answer;
    while (!answer.is_whole()) {
      RETURN_IF_ERROR(Wait(socket, POLLIN));
      if (!answer.Read(socket)) return Unavailable("it closed the connection");
    }
    if (!IsForThisRank(answer.hello) || answer.hello.from != rank)
      return Unavailable("something else is at port ", addresses_[rank].port, " of ", addresses_[rank].host);
    sockets_[rank] = std::move(socket);
    return Status();
  }

  struct Unknown {
    Descriptor socket;
    HelloReader reader;
  };

  // Connections of all ranks behind this one.
  Status TakeOthers() {
    std::vector<Unknown> unknown;
    while (true) {
      const auto first = sockets_.begin() + options_.rank + 1;
      const auto missing =
          std::find_if(first, sockets_.end(), [](const auto& each) { return !each.is_open(); });
      if (missing == sockets_.end()) return Status();
      std::vector<pollfd> set = {{.fd = listener_.number(), .events = POLLIN, .revents = 0}};
      for (const Unknown& each : unknown)
        set.push_back({.fd = each.socket.number(), .events = POLLIN, .revents = 0});
      ASSIGN_OR_RETURN(const bool is_in_time, Wait(set));
      if (!is_in_time) {
        return Unavailable("rank ", missing - sockets_.begin(), " did not connect within ",
                           Seconds(options_.connect_timeout), " s");
      }
      for (size_t i = unknown.size(); i-- > 0;) {
        if (IsSettled(unknown[i])) unknown.erase(unknown.begin() + static_cast<std::ptrdiff_t>(i));
      }
      RETURN_IF_ERROR(Accept(unknown));
    }
  }

  // One, if there is one: those before it are read from first, so that a rank does not go for strangers that
  // came behind it.
  Status Accept(std::vector<Unknown>& unknown) {
    Descriptor socket(accept4(listener_.number(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (socket.is_open()) {
      if (unknown.size() == kMostUnknown) unknown.erase(unknown.begin());
      unknown.push_back({.socket = std::move(socket), .reader = {}});
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      return Unavailable("cannot accept connections of other ranks: ", std::strerror(errno));
    }
    return Status();  // also where one has failed, which is not this rank's affair
  }

  // Whether `each` is a rank's connection now, or is to be closed. A place that is taken stays so.
  bool IsSettled(Unknown& each) {
    if (!each.reader.Read(each.socket)) return true;
    if (!each.reader.is_whole()) return false;
    const Hello& hello = each.reader.hello;
    const bool is_expected =
        IsForThisRank(hello) && hello.from > options_.rank && !sockets_[hello.from].is_open();
    if (is_expected && Say(each.socket, HelloTo(hello.from))) sockets_[hello.from] = std::move(each.socket);
    return true;
  }

  const ConnectOptions& options_;
  Token own_token_ = 0;
  Descriptor listener_;
  MonoTime deadline_;
  std::vector<Address> addresses_;   // by rank; this one's is empty
  std::vector<Descriptor> sockets_;  // by rank
};

}  // namespace

StatusOr<std::vector<Descriptor>> ConnectTcpMesh(const ConnectOptions& options,
                                                 const Rendezvous& rendezvous) {
  Mesh mesh(options);
  ASSIGN_OR_RETURN(const std::string mine, mesh.Listen());
  ASSIGN_OR_RETURN(const std::vector<std::string> told, rendezvous(mine));
  return mesh.Connect(told);
}

}  // namespace terrace
