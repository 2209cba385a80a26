// A rank that ends in the midst of a message: rank 0 is a GlooCommunicator, rank 1 a bare connection that
// speaks as Gloo's transport does.
#include "worker/parallel/gloo_communicator.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/descriptor.h"
#include "gloo/transport/tcp/address.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using gloo::transport::tcp::Address;

constexpr Duration kLong = std::chrono::seconds(120);  // no rank misses it

// As the communicator has them.
constexpr size_t kFrameSlot = 0, kRestSlot = 1, kEndSlot = 2;
constexpr size_t kInFrame = 64 << 10;  // bytes of a message
constexpr uint64_t kSendCall = 3;      // the number of a send in a header
struct Header {
  uint64_t call = 0, bytes = 0;
};

// What Gloo sends before a message, or to say that it is ready for one (gloo/transport/tcp/pair.h, Op).
enum class Opcode : uint64_t { kMessage = 1, kReadyToReceive = 3 };
struct Preamble {
  uint64_t bytes = 0;  // with the preamble, of what is sent
  Opcode opcode = {};
  uint64_t slot = 0, offset = 0, length = 0, receiver_offset = 0;
};
static_assert(sizeof(Preamble) == 48);

// Two ranks that are connected.
struct Pair {
  std::unique_ptr<Communicator> rank0;
  Descriptor rank1;
};
Pair MakePair() {
  std::signal(SIGPIPE, SIG_IGN);
  Pair out;
  const auto meet = [&](const std::string& mine) {
    sockaddr_storage address = Address(std::vector<char>(mine.begin(), mine.end())).getSockaddr();
    out.rank1 = Descriptor(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    CHECK(connect(out.rank1.number(), reinterpret_cast<const sockaddr*>(&address), sizeof(sockaddr_in)) == 0,
          std::strerror(errno));
    // Of two addresses the higher one connects: rank 0, at 127.0.0.1, waits.
    reinterpret_cast<sockaddr_in&>(address).sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);
    const std::vector<char> theirs = Address(address).bytes();
    return std::vector<std::string>{mine, std::string(theirs.begin(), theirs.end())};
  };
  auto made = ConnectGloo({.rank = 0, .ranks = 2, .timeout = kLong, .connect_timeout = kLong}, meet);
  CHECK(made.ok(), Message(made.status()));
  out.rank0 = *std::move(made);
  return out;
}

void SendAll(const Descriptor& socket, std::span<const std::byte> bytes) {
  ASSERT_EQ(send(socket.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
}

void SendPreamble(const Descriptor& socket, Opcode opcode, size_t slot, size_t length) {
  const Preamble preamble{.bytes = sizeof(Preamble) + (opcode == Opcode::kMessage ? length : 0),
                          .opcode = opcode,
                          .slot = slot,
                          .length = length};
  SendAll(socket, std::as_bytes(std::span(&preamble, 1)));
}

// Until rank 0, which sends preambles alone, is ready to receive at `slot`.
void AwaitReceiver(const Descriptor& socket, size_t slot) {
  Preamble preamble;
  do {
    ASSERT_EQ(recv(socket.number(), &preamble, sizeof(preamble), MSG_WAITALL),
              static_cast<ssize_t>(sizeof(preamble)));
  } while (preamble.opcode != Opcode::kReadyToReceive || preamble.slot != slot);
}

// The frame of a message of `bytes` bytes up to `sent` of those, to a rank that waits for it.
void SendFrame(const Descriptor& socket, size_t bytes, size_t sent) {
  const Header header{.call = kSendCall, .bytes = bytes};
  SendPreamble(socket, Opcode::kMessage, kFrameSlot, sizeof(header) + std::min(bytes, kInFrame));
  SendAll(socket, std::as_bytes(std::span(&header, 1)));
  SendAll(socket, std::vector<std::byte>(sent));
}

void ExpectEnded(const Status& status) {
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
  EXPECT_NE(Message(status).find("rank 1 has ended"), std::string::npos) << status;
}

TEST(GlooCommunicator, ARankThatEndsInTheMidstOfItsFrameFreesItsReceiver) {
  Pair pair = MakePair();
  std::thread other([&] {
    AwaitReceiver(pair.rank1, kFrameSlot);
    SendFrame(pair.rank1, /*bytes=*/1000, /*sent=*/10);
    pair.rank1 = Descriptor();
  });
  std::vector<std::byte> data(1000);
  ExpectEnded(pair.rank0->Receive(data, 1));
  other.join();
}

TEST(GlooCommunicator, ARankThatEndsInTheMidstOfWhatFollowsItsFrameFreesItsReceiver) {
  constexpr size_t kBytes = kInFrame + 1000;
  Pair pair = MakePair();
  std::thread other([&] {
    AwaitReceiver(pair.rank1, kFrameSlot);
    SendFrame(pair.rank1, kBytes, kInFrame);
    AwaitReceiver(pair.rank1, kRestSlot);
    SendPreamble(pair.rank1, Opcode::kMessage, kRestSlot, kBytes - kInFrame);
    SendAll(pair.rank1, std::vector<std::byte>(10));
    pair.rank1 = Descriptor();
  });
  std::vector<std::byte> data(kBytes);
  ExpectEnded(pair.rank0->Receive(data, 1));
  other.join();
}

TEST(GlooCommunicator, ARankThatEndsBeforeItHasReadAMessageFreesItsSender) {
  Pair pair = MakePair();
  std::thread other([&] {
    for (const size_t slot : {kFrameSlot, kRestSlot, kEndSlot})
      SendPreamble(pair.rank1, Opcode::kReadyToReceive, slot, 0);
    std::vector<std::byte> some(1 << 20);  // more than the frame: rank 0 is in what follows
    EXPECT_EQ(recv(pair.rank1.number(), some.data(), some.size(), MSG_WAITALL),
              static_cast<ssize_t>(some.size()));
    pair.rank1 = Descriptor();
  });
  ExpectEnded(pair.rank0->Send(std::vector<std::byte>(64 << 20), 1));  // more than the system takes at once
  other.join();
}

// Whether the news of the end comes before the receiver has woken or after it.
TEST(GlooCommunicator, AMessageThatWasWholeBeforeItsRankEndedIsTaken) {
  for (int i = 0; i < 20; ++i) {
    Pair pair = MakePair();
    std::thread other([&] {
      AwaitReceiver(pair.rank1, kFrameSlot);
      SendFrame(pair.rank1, /*bytes=*/1000, /*sent=*/1000);
      pair.rank1 = Descriptor();
    });
    std::vector<std::byte> data(1000);
    EXPECT_EQ(pair.rank0->Receive(data, 1), Status());
    other.join();
  }
}

}  // namespace
}  // namespace terrace
