#include "worker/parallel/tcp_communicator.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "worker/parallel/tcp_mesh.h"

namespace terrace {
namespace {

// How long a rank that has nothing to do looks again before it sleeps, while a thread without a processor may
// have this one: longer than the others are behind in a step, mostly.
constexpr Duration kSpin = std::chrono::microseconds(50);

struct Header {
  uint64_t call = 0, bytes = 0;
};

constexpr char kClosed[] = "it closed the connection";

// What a call sends to a peer and receives from it, and how far it is. Counts have the headers in.
struct Transfer {
  Header header_out, header_in;
  std::span<const std::byte> out;
  std::span<std::byte> in;
  size_t to_send = 0, to_receive = 0;  // 0: the peer has no part in the call
  size_t sent = 0, received = 0;

  bool has_sent() const { return sent == to_send; }
  bool has_received() const { return received == to_receive; }
  bool is_done() const { return has_sent() && has_received(); }
};

class TcpCommunicator final : public Communicator {
 public:
  TcpCommunicator(const ConnectOptions& options, std::vector<Descriptor> sockets)
      : Communicator(options.rank, options.ranks, options.timeout),
        sockets_(std::move(sockets)),
        transfers_(options.ranks),
        poll_set_(options.ranks) {}

  // Wakes the call that is under way too: it finds its connections closed. What was sent before still
  // arrives.
  void Abort(const Status& why) override {
    std::lock_guard lock(mutex_);
    if (ended_.ok()) ended_ = why;
    for (const Descriptor& socket : sockets_) {
      if (socket.is_open()) shutdown(socket.number(), SHUT_RDWR);
    }
  }

  Status FindEnded() override {
    if (!OwnEnd().ok()) return Status();  // all connections are closed then
    return FindClosed([this](uint32_t i) { return i != rank(); });
  }

 private:
  Status Exchange(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                  MonoTime deadline) override {
    if (Status ended = OwnEnd(); !ended.ok()) return ended;
    std::ranges::fill(transfers_, Transfer());
    for (const Outgoing& each : outgoing) TakePart(call, each.to).out = each.data;
    for (const Incoming& each : incoming) TakePart(call, each.from).in = each.data;
    for (Transfer& each : transfers_) {
      each.header_out.bytes = each.out.size();
      each.to_send += each.out.size();
      each.to_receive += each.in.size();
    }
    // Whoever goes before it has this rank's header did not finish the call.
    Status status = FindClosed([this](uint32_t i) { return transfers_[i].to_send > 0; });
    if (status.ok()) status = MoveAll(call, deadline);
    const Status ended = OwnEnd();
    return ended.ok() ? status : ended;
  }

  Status OwnEnd() {
    std::lock_guard lock(mutex_);
    return ended_;
  }

  // The first of those ranks whose connection the other side has closed, though there may be something left
  // to receive.
  template <typename IsAsked>
  Status FindClosed(IsAsked is_asked) {
    for (uint32_t i = 0; i < ranks(); ++i)
      poll_set_[i] = {.fd = is_asked(i) ? sockets_[i].number() : -1, .events = POLLRDHUP, .revents = 0};
    if (Poll(poll_set_, Duration(0)) <= 0) return Status();
    const auto found = std::ranges::find_if(poll_set_, [](const pollfd& each) { return each.revents != 0; });
    return Ended(static_cast<uint32_t>(found - poll_set_.begin()), kClosed);
  }

  Transfer& TakePart(Call call, uint32_t rank) {
    Transfer& transfer = transfers_[rank];
    transfer.header_out.call = static_cast<uint64_t>(call);
    transfer.to_send = transfer.to_receive = sizeof(Header);
    return transfer;
  }

  // All messages, as their connections let them: two ranks may send each other more than is on its way.
  Status MoveAll(Call call, MonoTime deadline) {
    for (MonoTime sleep_time = RealClock().Now() + kSpin;;) {
      bool is_done = true, has_moved = false;
      for (uint32_t i = 0; i < ranks(); ++i) {
        const size_t before = transfers_[i].sent + transfers_[i].received;
        RETURN_IF_ERROR(SendTo(i));
        RETURN_IF_ERROR(ReceiveFrom(i, call));
        has_moved = has_moved || transfers_[i].sent + transfers_[i].received > before;
        is_done = is_done && transfers_[i].is_done();
      }
      if (is_done) return Status();
      const MonoTime now = RealClock().Now();
      if (now >= deadline) return Missed(FirstMissing(), call, timeout());
      if (has_moved) {
        sleep_time = now + kSpin;
      } else if (now < sleep_time) {
        std::this_thread::yield();
      } else {
        RETURN_IF_ERROR(Sleep(deadline - now));
      }
    }
  }

  // What the connection takes now.
  Status SendTo(uint32_t rank) {
    Transfer& each = transfers_[rank];
    while (!each.has_sent()) {
      const size_t of_header = std::min(each.sent, sizeof(Header)), of_data = each.sent - of_header;
      // Only read.
      iovec parts[] = {{.iov_base = reinterpret_cast<char*>(&each.header_out) + of_header,
                        .iov_len = sizeof(Header) - of_header},
                       {.iov_base = const_cast<std::byte*>(each.out.data()) + of_data,
                        .iov_len = each.out.size() - of_data}};
      msghdr message = {};
      message.msg_iov = parts;
      message.msg_iovlen = std::size(parts);
      const ssize_t bytes = sendmsg(sockets_[rank].number(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (bytes >= 0) {
        each.sent += static_cast<size_t>(bytes);
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        return Status();
      } else if (errno != EINTR) {
        return Ended(rank, std::strerror(errno));
      }
    }
    return Status();
  }

  // What has come; of the data only when the header is the one of this call.
  Status ReceiveFrom(uint32_t rank, Call call) {
    Transfer& each = transfers_[rank];
    while (!each.has_received()) {
      const bool is_header = each.received < sizeof(Header);
      const std::span<std::byte> rest =
          is_header ? std::as_writable_bytes(std::span(&each.header_in, 1)).subspan(each.received)
                    : each.in.subspan(each.received - sizeof(Header));
      const ssize_t bytes = recv(sockets_[rank].number(), rest.data(), rest.size(), MSG_DONTWAIT);
      if (bytes > 0) {
        each.received += static_cast<size_t>(bytes);
        if (is_header && each.received >= sizeof(Header)) RETURN_IF_ERROR(CheckHeader(rank, call));
      } else if (bytes == 0) {
        return Ended(rank, kClosed);
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        return Status();
      } else if (errno != EINTR) {
        return Ended(rank, std::strerror(errno));
      }
    }
    return Status();
  }

  Status CheckHeader(uint32_t rank, Call call) const {
    const Transfer& each = transfers_[rank];
    const auto got = static_cast<Call>(
        std::min<uint64_t>(each.header_in.call, std::numeric_limits<std::underlying_type_t<Call>>::max()));
    return CheckMessage(rank, got, each.header_in.bytes, call, each.in.size());
  }

  // Of the ranks that keep this one waiting.
  uint32_t FirstMissing() const {
    const auto first = [this](bool (Transfer::*has)() const) {
      return std::ranges::find_if(transfers_, [has](const Transfer& each) { return !(each.*has)(); });
    };
    const auto receives = first(&Transfer::has_received);
    return static_cast<uint32_t>((receives != transfers_.end() ? receives : first(&Transfer::has_sent)) -
                                 transfers_.begin());
  }

  // Until a connection can go on, or `left` is over. Whoever closes before it took all has not finished the
  // call: a connection that is full of what it does not read says so in no other way.
  Status Sleep(Duration left) {
    for (uint32_t i = 0; i < ranks(); ++i) {
      const Transfer& each = transfers_[i];
      const int events = (each.has_sent() ? 0 : POLLOUT | POLLRDHUP) | (each.has_received() ? 0 : POLLIN);
      poll_set_[i] = {.fd = each.is_done() ? -1 : sockets_[i].number(),
                      .events = static_cast<short>(events),
                      .revents = 0};
    }
    if (Poll(poll_set_, left) < 0)
      return errno == EINTR ? Status() : Unavailable("ppoll: ", std::strerror(errno));
    for (uint32_t i = 0; i < ranks(); ++i) {
      const Transfer& each = transfers_[i];  // what is left to receive ends with the news
      if (each.has_received() && !each.has_sent() && (poll_set_[i].revents & POLLRDHUP) != 0)
        return Ended(i, kClosed);
    }
    return Status();
  }

  const std::vector<Descriptor> sockets_;  // by rank; this one's is none
  // By rank; of the last call, whose thread alone uses them.
  std::vector<Transfer> transfers_;
  std::vector<pollfd> poll_set_;  // descriptors below 0 are not looked at
  std::mutex mutex_;
  Status ended_;  // GUARDED_BY(mutex_): why
};

}  // namespace

StatusOr<std::unique_ptr<Communicator>> ConnectTcp(const ConnectOptions& options,
                                                   const Rendezvous& rendezvous) {
  ASSIGN_OR_RETURN(std::vector<Descriptor> sockets, ConnectTcpMesh(options, rendezvous));
  return std::unique_ptr<Communicator>(std::make_unique<TcpCommunicator>(options, std::move(sockets)));
}

}  // namespace terrace
