#include "worker/parallel/gloo_communicator.h"

#include <netdb.h>
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "base/descriptor.h"
#include "gloo/transport/context.h"
#include "gloo/transport/device.h"
#include "gloo/transport/tcp/device.h"
#include "gloo/transport/unbound_buffer.h"

namespace terrace {
namespace {

using gloo::transport::UnboundBuffer;
using Milliseconds = std::chrono::milliseconds;

constexpr uint64_t kFrameSlot = 0, kRestSlot = 1;  // Gloo's tags
constexpr size_t kInFrame = 64 << 10;              // bytes of a message

struct Header {
  uint64_t call = 0, bytes = 0;
};
struct Frame {
  Header header;
  std::byte data[kInFrame];
};

// The frames of one peer, in both directions.
struct Peer {
  std::unique_ptr<Frame> out, in;
  std::unique_ptr<UnboundBuffer> send, receive;  // last: they borrow the frames
};

// What Gloo threw, without the place in its source: "[./gloo/transport/tcp/pair.cc:598] Connection
// closed...".
std::string Why(const std::exception& error) {
  const std::string_view text = error.what();
  const size_t end = text.find("] ");
  const bool has_place =
      text.starts_with('[') && end != text.npos && text.substr(0, end).find("gloo/") != text.npos;
  return std::string(has_place ? text.substr(end + 2) : text);
}

size_t InFrame(size_t bytes) { return std::min(bytes, kInFrame); }

class GlooCommunicator final : public Communicator {
 public:
  GlooCommunicator(const ConnectOptions& options, std::shared_ptr<gloo::transport::Context> context)
      : Communicator(options.rank, options.ranks, options.timeout),
        context_(std::move(context)),
        peers_(options.ranks) {
    for (uint32_t i = 0; i < options.ranks; ++i) {
      if (i == options.rank) continue;
      Peer& peer = peers_[i];
      peer.out = std::make_unique<Frame>();
      peer.in = std::make_unique<Frame>();
      peer.send = context_->createUnboundBuffer(peer.out.get(), sizeof(Frame));
      peer.receive = context_->createUnboundBuffer(peer.in.get(), sizeof(Frame));
    }
  }

  void Abort(const Status& why) override {
    std::lock_guard lock(mutex_);
    if (ended_.ok()) ended_ = why;
    if (!is_exchanging_) return Close();
    const auto end_waits = [](UnboundBuffer& buffer) {
      buffer.abortWaitSend();
      buffer.abortWaitRecv();
    };
    for (const Peer& peer : peers_) {
      if (peer.send == nullptr) continue;
      end_waits(*peer.send);
      end_waits(*peer.receive);
    }
    for (const Rest& rest : rests_) end_waits(*rest.buffer);
  }

  // Gloo tells that a connection was closed when it is used.
  Status FindEnded() override {
    for (uint32_t i = 0; i < ranks(); ++i) {
      if (i == rank()) continue;
      try {
        peers_[i].receive->recv(static_cast<int>(i), kFrameSlot, 0, sizeof(Frame));
      } catch (const std::exception& error) {
        return Ended(i, Why(error));
      }
    }
    return Status();
  }

 private:
  // What of a message does not fit its frame, in memory of the caller.
  struct Rest {
    uint32_t peer = 0;
    bool is_sent = false;
    std::unique_ptr<UnboundBuffer> buffer;
  };
  // The call that this rank is in.
  struct Current {
    Call call;
    MonoTime deadline;
  };

  Status Exchange(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                  MonoTime deadline) override {
    {
      std::lock_guard lock(mutex_);
      RETURN_IF_ERROR(ended_);
      is_exchanging_ = true;
    }
    const Status status = SendAndReceive({.call = call, .deadline = deadline}, outgoing, incoming);
    std::lock_guard lock(mutex_);
    is_exchanging_ = false;
    if (!status.ok() || !ended_.ok()) Close();  // before memory that Gloo writes to is the caller's again
    rests_.clear();
    return ended_.ok() ? status : ended_;
  }

  Status SendAndReceive(const Current& current, std::span<const Outgoing> outgoing,
                        std::span<const Incoming> incoming) {
    for (const Incoming& each : incoming) {
      RETURN_IF_ERROR(Start(current, each.from, [&] {
        peers_[each.from].receive->recv(static_cast<int>(each.from), kFrameSlot, 0, sizeof(Frame));
      }));
    }
    for (const Outgoing& each : outgoing) RETURN_IF_ERROR(StartSend(current, each));
    for (const Incoming& each : incoming) RETURN_IF_ERROR(TakeFrame(current, each));
    for (const Rest& each : rests_) {
      RETURN_IF_ERROR(each.is_sent ? WaitSend(current, each.peer, *each.buffer)
                                   : WaitReceive(current, each.peer, *each.buffer));
    }
    for (const Outgoing& each : outgoing) {
      RETURN_IF_ERROR(WaitSend(current, each.to, *peers_[each.to].send));
    }
    return Status();
  }

  Status StartSend(const Current& current, const Outgoing& message) {
    const size_t in_frame = InFrame(message.data.size());
    const auto to = static_cast<int>(message.to);
    Frame& frame = *peers_[message.to].out;
    frame.header = {.call = static_cast<uint64_t>(current.call), .bytes = message.data.size()};
    if (in_frame > 0) std::memcpy(frame.data, message.data.data(), in_frame);
    RETURN_IF_ERROR(Start(current, message.to, [&] {
      peers_[message.to].send->send(to, kFrameSlot, 0, sizeof(Header) + in_frame);
    }));
    if (in_frame == message.data.size()) return Status();
    const std::span<const std::byte> rest = message.data.subspan(in_frame);
    // Gloo only reads what it sends.
    ASSIGN_OR_RETURN(UnboundBuffer* const buffer,
                     AddRest(message.to, /*is_sent=*/true, const_cast<std::byte*>(rest.data()), rest.size()));
    return Start(current, message.to, [&] { buffer->send(to, kRestSlot, 0, rest.size()); });
  }

  // The rest is asked for only when the sender means the same.
  Status TakeFrame(const Current& current, const Incoming& message) {
    const size_t in_frame = InFrame(message.data.size());
    RETURN_IF_ERROR(WaitReceive(current, message.from, *peers_[message.from].receive));
    const Frame& frame = *peers_[message.from].in;
    RETURN_IF_ERROR(CheckMessage(message.from, static_cast<Call>(frame.header.call), frame.header.bytes,
                                 current.call, message.data.size()));
    if (in_frame > 0) std::memcpy(message.data.data(), frame.data, in_frame);
    if (in_frame == message.data.size()) return Status();
    const std::span<std::byte> rest = message.data.subspan(in_frame);
    ASSIGN_OR_RETURN(UnboundBuffer* const buffer,
                     AddRest(message.from, /*is_sent=*/false, rest.data(), rest.size()));
    return Start(current, message.from,
                 [&] { buffer->recv(static_cast<int>(message.from), kRestSlot, 0, rest.size()); });
  }

  // The error of an Abort that came before.
  StatusOr<UnboundBuffer*> AddRest(uint32_t peer, bool is_sent, std::byte* data, size_t bytes) {
    std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(ended_);
    rests_.push_back(
        {.peer = peer, .is_sent = is_sent, .buffer = context_->createUnboundBuffer(data, bytes)});
    return rests_.back().buffer.get();
  }

  template <typename Use>
  Status Start(const Current& current, uint32_t peer, Use use) {
    return Try(current, peer, [&](Milliseconds) {
      use();
      return true;
    });
  }
  Status WaitSend(const Current& current, uint32_t peer, UnboundBuffer& buffer) {
    return Try(current, peer, [&](Milliseconds left) { return buffer.waitSend(nullptr, left); });
  }
  Status WaitReceive(const Current& current, uint32_t peer, UnboundBuffer& buffer) {
    return Try(current, peer, [&](Milliseconds left) { return buffer.waitRecv(nullptr, left); });
  }

  // What Gloo throws, and that a wait was ended by Abort, as a Status. `use` gets the time that is left.
  template <typename Use>
  Status Try(const Current& current, uint32_t peer, Use use) {
    const Duration left = std::max(current.deadline - RealClock().Now(), Duration(0));
    try {
      if (use(std::chrono::ceil<Milliseconds>(left))) return Status();
    } catch (const std::exception& error) {
      if (RealClock().Now() >= current.deadline) return Missed(peer, current.call, timeout());
      return Ended(peer, Why(error));
    }
    return Aborted("the wait was ended");  // Exchange returns why
  }

  // The other ranks hear of it at once. Under the mutex.
  void Close() {
    for (uint32_t i = 0; i < ranks(); ++i) {
      if (i != rank()) context_->getPair(static_cast<int>(i))->close();
    }
  }

  const std::shared_ptr<gloo::transport::Context> context_;
  std::vector<Peer> peers_;  // by rank; this one's is empty
  std::mutex mutex_;
  Status ended_;                // GUARDED_BY(mutex_): why
  bool is_exchanging_ = false;  // GUARDED_BY(mutex_): a call waits for buffers
  std::vector<Rest> rests_;     // of the call, which alone changes them, under the mutex
};

// Gloo takes it that a name can be resolved, and leaks where it is not this machine's.
Status CheckHost(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found);
  if (error != 0) return Unavailable("cannot resolve ", host, ": ", gai_strerror(error));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> all(found, freeaddrinfo);
  int why = 0;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    const Descriptor probe(socket(each->ai_family, each->ai_socktype, each->ai_protocol));
    if (probe.is_open() && bind(probe.number(), each->ai_addr, each->ai_addrlen) == 0) return Status();
    why = errno;
  }
  return Unavailable("cannot listen on ", host, ": ", std::strerror(why));
}

// The addresses at which this rank waits for each of the others, one after the other.
std::string ListenForAll(const ConnectOptions& options, gloo::transport::Context& context) {
  std::string mine;
  for (uint32_t i = 0; i < options.ranks; ++i) {
    if (i == options.rank) continue;
    const std::vector<char> address = context.createPair(static_cast<int>(i))->address().bytes();
    mine.append(address.begin(), address.end());
  }
  return mine;
}

// Where rank `from`, which told `addresses`, waits for `rank`.
StatusOr<std::vector<char>> AddressFor(const std::string& addresses, uint32_t from, uint32_t rank,
                                       uint32_t ranks) {
  const size_t size = addresses.size() / (ranks - 1), index = rank > from ? rank - 1 : rank;
  if (size == 0 || size * (ranks - 1) != addresses.size()) {
    return Unavailable("rank ", from, " told ", addresses.size(), " bytes for ", ranks - 1, " addresses");
  }
  const auto begin = addresses.begin() + static_cast<ptrdiff_t>(index * size);
  return std::vector<char>(begin, begin + static_cast<ptrdiff_t>(size));
}

// Threads that this one starts meanwhile do not preempt others when they wake. Gloo's does nothing but wake
// when something comes, also while the thread that makes a call writes to the same connection, whose lock
// that one holds: then it asks for the lock, and for events, again and again. Woken on the writer's processor
// it would take that for as long as the scheduler lets it, in which nothing is written
// (docs/adr/0012-tcp-between-ranks.md).
class StartsBatchThreads {
 public:
  StartsBatchThreads() : policy_(sched_getscheduler(0)) { Set(SCHED_BATCH); }
  ~StartsBatchThreads() { Set(SCHED_OTHER); }
  StartsBatchThreads(const StartsBatchThreads&) = delete;
  StartsBatchThreads& operator=(const StartsBatchThreads&) = delete;

 private:
  void Set(int policy) const {
    const sched_param parameters = {};
    if (policy_ == SCHED_OTHER) sched_setscheduler(0, policy, &parameters);  // else left as somebody set it
  }

  const int policy_;
};

std::shared_ptr<gloo::transport::Device> MakeDevice(const std::string& host) {
  const StartsBatchThreads during;
  return gloo::transport::tcp::CreateDevice(host.c_str());
}

}  // namespace

StatusOr<std::unique_ptr<Communicator>> ConnectGloo(const ConnectOptions& options,
                                                    const Rendezvous& rendezvous) {
  RETURN_IF_ERROR(CheckHost(options.host));
  uint32_t peer = options.rank;  // whom an exception is about
  try {
    const auto device = MakeDevice(options.host);
    const auto context =
        device->createContext(static_cast<int>(options.rank), static_cast<int>(options.ranks));
    // Gloo waits five times its timeout for a connection, and for ever with a timeout of 0.
    context->setTimeout(
        std::max(std::chrono::ceil<Milliseconds>(options.connect_timeout / 5), Milliseconds(1)));
    const std::string mine = ListenForAll(options, *context);
    ASSIGN_OR_RETURN(const std::vector<std::string> all, rendezvous(mine));
    if (all.size() != options.ranks)
      return Unavailable("the rendezvous told of ", all.size(), " ranks, not ", options.ranks);
    for (uint32_t i = 0; i < options.ranks; ++i) {
      if (i == options.rank) continue;
      peer = i;
      ASSIGN_OR_RETURN(const std::vector<char> address, AddressFor(all[i], i, options.rank, options.ranks));
      context->getPair(static_cast<int>(i))->connect(address);
    }
    return std::unique_ptr<Communicator>(std::make_unique<GlooCommunicator>(options, context));
  } catch (const std::exception& error) {
    return peer == options.rank ? Unavailable("cannot listen on ", options.host, ": ", Why(error))
                                : Unavailable("cannot connect to rank ", peer, ": ", Why(error));
  }
}

}  // namespace terrace
