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

// Gloo's tags: of frames, of what does not fit them, of the empty message behind that, and of one that nobody
// sends.
constexpr uint64_t kFrameSlot = 0, kRestSlot = 1, kEndSlot = 2, kNeverSlot = 3;
constexpr size_t kInFrame = 64 << 10;  // bytes of a message

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
bool HasRest(size_t bytes) { return bytes > kInFrame; }

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

  // Once a rank is connected, before the first call; throws what Gloo does. When a connection is closed Gloo
  // tells the buffers whose messages have not begun, not the one that it reads into and those that it writes
  // from, whose waits would last until the deadline. So each buffer has one that never begins.
  void HearOfTheEndOf(uint32_t rank) {
    for (UnboundBuffer* const buffer : {peers_[rank].send.get(), peers_[rank].receive.get()})
      buffer->recv(static_cast<int>(rank), kNeverSlot, 0, 0);
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
    for (const Incoming& each : incoming) {
      if (HasRest(each.data.size())) RETURN_IF_ERROR(WaitReceive(current, each.from));
    }
    for (const Outgoing& each : outgoing) {
      RETURN_IF_ERROR(WaitSend(current, each.to));
      if (HasRest(each.data.size())) RETURN_IF_ERROR(WaitSend(current, each.to));
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
    if (!HasRest(message.data.size())) return Status();
    const std::span<const std::byte> rest = message.data.subspan(in_frame);
    // Gloo only reads what it sends.
    UnboundBuffer& buffer = AddRest(const_cast<std::byte*>(rest.data()), rest.size());
    return Start(current, message.to, [&] {
      buffer.send(to, kRestSlot, 0, rest.size());
      peers_[message.to].send->send(to, kEndSlot, 0, 0);
    });
  }

  // The rest is asked for only when the sender means the same.
  Status TakeFrame(const Current& current, const Incoming& message) {
    const size_t in_frame = InFrame(message.data.size());
    const auto from = static_cast<int>(message.from);
    RETURN_IF_ERROR(WaitReceive(current, message.from));
    const Frame& frame = *peers_[message.from].in;
    RETURN_IF_ERROR(CheckMessage(message.from, static_cast<Call>(frame.header.call), frame.header.bytes,
                                 current.call, message.data.size()));
    if (in_frame > 0) std::memcpy(message.data.data(), frame.data, in_frame);
    if (!HasRest(message.data.size())) return Status();
    const std::span<std::byte> rest = message.data.subspan(in_frame);
    UnboundBuffer& buffer = AddRest(rest.data(), rest.size());
    return Start(current, message.from, [&] {
      buffer.recv(from, kRestSlot, 0, rest.size());
      peers_[message.from].receive->recv(from, kEndSlot, 0, 0);
    });
  }

  // Of memory of the caller. Not waited for: the rest has gone, or come, when the end behind it has.
  UnboundBuffer& AddRest(std::byte* data, size_t bytes) {
    rests_.push_back(context_->createUnboundBuffer(data, bytes));
    return *rests_.back();
  }

  template <typename Use>
  Status Start(const Current& current, uint32_t peer, Use use) {
    return Try(current, peer, [&](Milliseconds) {
      use();
      return true;
    });
  }
  // One message to, or from, the peer's frame.
  Status WaitSend(const Current& current, uint32_t peer) {
    return Wait(current, peer, [&](Milliseconds left) { return peers_[peer].send->waitSend(nullptr, left); });
  }
  Status WaitReceive(const Current& current, uint32_t peer) {
    return Wait(current, peer,
                [&](Milliseconds left) { return peers_[peer].receive->waitRecv(nullptr, left); });
  }
  // A wait that is woken by the end of a connection throws, also when the message was whole before: asked
  // again, without a wait, Gloo says which it is.
  template <typename Use>
  Status Wait(const Current& current, uint32_t peer, Use use) {
    return Try(current, peer, [&](Milliseconds left) {
      try {
        return use(left);
      } catch (const std::exception&) {
        return use(Milliseconds(0));
      }
    });
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
  // What of the call's messages does not fit their frames; the call's thread alone uses it.
  std::vector<std::unique_ptr<UnboundBuffer>> rests_;
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
    auto made = std::make_unique<GlooCommunicator>(options, context);
    for (uint32_t i = 0; i < options.ranks; ++i) {
      if (i == options.rank) continue;
      peer = i;
      ASSIGN_OR_RETURN(const std::vector<char> address, AddressFor(all[i], i, options.rank, options.ranks));
      context->getPair(static_cast<int>(i))->connect(address);
      made->HearOfTheEndOf(i);
    }
    return std::unique_ptr<Communicator>(std::move(made));
  } catch (const std::exception& error) {
    return peer == options.rank ? Unavailable("cannot listen on ", options.host, ": ", Why(error))
                                : Unavailable("cannot connect to rank ", peer, ": ", Why(error));
  }
}

}  // namespace terrace
