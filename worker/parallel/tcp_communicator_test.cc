// What TCP alone can do wrong: rank 0 is a TcpCommunicator, the others have bare connections, or are
// strangers.
#include "worker/parallel/tcp_communicator.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <csignal>
#include <functional>
#include <future>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/parallel/tcp_mesh.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr Duration kLong = std::chrono::seconds(120);      // no rank misses it
constexpr Duration kShort = std::chrono::milliseconds(1);  // for ranks that never come

constexpr uint64_t kSendCall = 3;  // the number of a send in a header
struct Header {
  uint64_t call = 0, bytes = 0;
};
struct Hello {
  char protocol[8] = {'t', 'e', 'r', 'r', 'a', 'c', 'e', '1'};
  uint32_t from = 0, to = 0;
  uint64_t token = 0;
};

template <typename T>
std::string BytesOf(const T& value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}
std::string BytesOf(const std::vector<std::byte>& data) {
  return std::string(reinterpret_cast<const char*>(data.data()), data.size());
}

void SendAll(const Descriptor& socket, const std::string& bytes) {
  ASSERT_EQ(send(socket.number(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
}

// At which a rank told that it listens.
uint16_t PortOf(const std::string& told) {
  const size_t space = told.rfind(' ', told.rfind(' ') - 1);
  return static_cast<uint16_t>(std::stoul(told.substr(space + 1)));
}

sockaddr_in Loopback(uint16_t port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// A connection of somebody who found the port.
Descriptor Stranger(uint16_t port) {
  Descriptor out(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_in address = Loopback(port);
  CHECK(connect(out.number(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return out;
}

// Something at an address that is no rank. `told`: as a rank would tell it.
struct Place {
  explicit Place(bool listens) : socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = Loopback(0);
    socklen_t size = sizeof(address);
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    CHECK(bind(socket.number(), any, size) == 0 && getsockname(socket.number(), any, &size) == 0);
    CHECK(!listens || listen(socket.number(), 1) == 0);
    told = Concat("terrace-tcp 7 ", ntohs(address.sin_port), " 127.0.0.1");
  }
  Descriptor socket;
  std::string told;
};

// Two ranks that are connected.
struct Pair {
  std::unique_ptr<Communicator> rank0;
  std::vector<Descriptor> sockets;  // of rank 1
  const Descriptor& rank1() const { return sockets[0]; }
};
Pair MakePair(Duration timeout, const std::function<void(const std::string& told)>& before = nullptr) {
  Pair out;
  std::promise<std::string> told0, told1;
  std::thread other([&] {
    auto made =
        ConnectTcpMesh({.rank = 1, .ranks = 2, .connect_timeout = kLong}, [&](const std::string& mine) {
          told1.set_value(mine);
          return std::vector<std::string>{told0.get_future().get(), mine};
        });
    CHECK(made.ok(), Message(made.status()));
    out.sockets = *std::move(made);
  });
  auto made = ConnectTcp({.rank = 0, .ranks = 2, .timeout = timeout, .connect_timeout = kLong},
                         [&](const std::string& mine) {
                           if (before != nullptr) before(mine);
                           told0.set_value(mine);
                           return std::vector<std::string>{mine, told1.get_future().get()};
                         });
  other.join();
  CHECK(made.ok(), Message(made.status()));
  CHECK(fcntl(out.rank1().number(), F_SETFL, 0) == 0);  // the test may wait
  out.rank0 = *std::move(made);
  return out;
}

TEST(TcpMesh, StrangersNeitherTakeARanksPlaceNorHoldUpTheGroup) {
  std::vector<Descriptor> strangers;
  const Pair pair = MakePair(kLong, [&](const std::string& told) {
    const Hello guess{.from = 1, .to = 0, .token = 1}, other_protocol{.protocol = {'x'}, .from = 1, .to = 0};
    for (const std::string& says :
         {std::string(), std::string("GET / HTTP/1.1\r\n\r\n and more"), std::string("terrace1"),
          BytesOf(guess), BytesOf(other_protocol), std::string(100, '\0')}) {
      strangers.push_back(Stranger(PortOf(told)));
      SendAll(strangers.back(), says);
    }
    static_cast<void>(Stranger(PortOf(told)));  // goes at once
    for (int i = 0; i < 200; ++i) strangers.push_back(Stranger(PortOf(told)));
  });
  SendAll(pair.rank1(), BytesOf(Header{.call = kSendCall, .bytes = 2}) + "ok");
  std::vector<std::byte> data(2);
  EXPECT_EQ(pair.rank0->Receive(data, 1), Status());
  EXPECT_EQ(BytesOf(data), "ok");
}

TEST(TcpMesh, ARankThatDoesNotConnectIsNamedWhoeverElseDoes) {
  Descriptor stranger;
  const Status status =
      ConnectTcp({.rank = 0, .ranks = 2, .connect_timeout = kShort}, [&](const std::string& mine) {
        stranger = Stranger(PortOf(mine));
        return std::vector<std::string>{mine, mine};
      }).status();
  EXPECT_EQ(status, Unavailable("rank 1 did not connect within 0.001 s"));
}

// Not for the whole of connect_timeout.
TEST(TcpMesh, WhoWaitsForRanksOrTheirAnswersHearsOfAnEnd) {
  const Place silent(/*listens=*/true);
  for (const uint32_t rank : {0u, 1u}) {  // one takes connections, the other one makes one
    int asked = 0;
    const ConnectOptions options{
        .rank = rank, .ranks = 2, .connect_timeout = kLong, .find_end = [&asked]() -> Status {
          return ++asked < 3 ? Status() : Cancelled("by the test");
        }};
    const Status status = ConnectTcp(options, [&](const std::string& mine) {
                            return rank == 0 ? std::vector<std::string>{mine, mine}
                                             : std::vector<std::string>{silent.told, mine};
                          }).status();
    EXPECT_EQ(status.code(), StatusCode::kCancelled) << status;
    EXPECT_THAT(Message(status), HasSubstr("by the test"));
    EXPECT_EQ(asked, 3);
  }
}

TEST(TcpMesh, ARankThatIsNotWhereItSaidIsNamed) {
  const auto connect_to = [](const std::string& told, Duration timeout) {
    return ConnectTcp({.rank = 1, .ranks = 2, .connect_timeout = timeout},
                      [&](const std::string& mine) {
                        return std::vector<std::string>{told, mine};
                      })
        .status();
  };
  EXPECT_EQ(connect_to(Place(/*listens=*/false).told, kLong),
            Unavailable("cannot connect to rank 0: Connection refused"));
  const Place silent(/*listens=*/true), other(/*listens=*/true);
  EXPECT_EQ(connect_to(silent.told, kShort), Unavailable("cannot connect to rank 0: not within 0.001 s"));
  std::thread answers([&] {
    const Descriptor accepted(accept(other.socket.number(), nullptr, nullptr));
    SendAll(accepted, std::string(sizeof(Hello), 'x'));
    char byte = 0;
    while (recv(accepted.number(), &byte, 1, 0) > 0) {
    }
  });
  EXPECT_THAT(Message(connect_to(other.told, kLong)),
              HasSubstr("cannot connect to rank 0: something else is at port "));
  answers.join();
}

TEST(TcpCommunicator, MessagesThatComeInPiecesOrEarlyAreWhole) {
  const Pair pair = MakePair(kLong);
  const std::string first = BytesOf(Header{.call = kSendCall, .bytes = 3}) + "one",
                    next = BytesOf(Header{.call = kSendCall, .bytes = 3}) + "two";
  SendAll(pair.rank1(), first + next);
  for (const char* const want : {"one", "two"}) {
    std::vector<std::byte> data(3);
    EXPECT_EQ(pair.rank0->Receive(data, 1), Status());
    EXPECT_EQ(BytesOf(data), want);
  }
  std::thread slow([&] {
    for (const char byte : first) SendAll(pair.rank1(), std::string(1, byte));
  });
  std::vector<std::byte> data(3);
  EXPECT_EQ(pair.rank0->Receive(data, 1), Status());
  EXPECT_EQ(BytesOf(data), "one");
  slow.join();
}

TEST(TcpCommunicator, ARankThatClosesInMidMessageHasEnded) {
  const std::string message = BytesOf(Header{.call = kSendCall, .bytes = 8}) + "12345678";
  for (size_t sent = 0; sent < message.size(); ++sent) {
    Pair pair = MakePair(kLong);
    SendAll(pair.rank1(), message.substr(0, sent));
    pair.sockets.clear();
    std::vector<std::byte> data(8);
    const Status status = pair.rank0->Receive(data, 1);
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
    EXPECT_THAT(Message(status), HasSubstr("rank 1 has ended: ")) << sent << " bytes";
    EXPECT_EQ(pair.rank0->Barrier(), status);
  }
}

TEST(TcpCommunicator, AHeaderThatIsNotThisCallsIsAnErrorBeforeDataIsTaken) {
  const struct {
    Header header;
    const char* message;
  } cases[] = {
      {{.call = kSendCall, .bytes = 9}, "rank 1 is in send of 9 bytes, this one in send of 8"},
      {{.call = kSendCall, .bytes = 7}, "rank 1 is in send of 7 bytes"},
      {{.call = kSendCall, .bytes = std::numeric_limits<uint64_t>::max()}, "18446744073709551615 bytes"},
      {{.call = 0, .bytes = 8}, "rank 1 is in all-reduce of 8 bytes, this one in send of 8"},
      {{.call = 77, .bytes = 8}, "rank 1 is in unknown call of 8 bytes"},
      {{.call = kSendCall + (uint64_t{1} << 32), .bytes = 8}, "rank 1 is in unknown call of 8 bytes"}};
  for (const auto& each : cases) {
    const Pair pair = MakePair(kLong);
    SendAll(pair.rank1(), BytesOf(each.header) + "12345678");
    std::vector<std::byte> data(8);
    const Status status = pair.rank0->Receive(data, 1);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(Message(status), HasSubstr(each.message));
    EXPECT_EQ(data, std::vector<std::byte>(8));
  }
}

TEST(TcpCommunicator, ARankThatReadsNothingIsMissedAndAnAbortDoesNotWaitForIt) {
  const std::vector<std::byte> much(64 << 20);  // more than connections hold
  const Pair missed = MakePair(kShort);
  SendAll(missed.rank1(), BytesOf(Header{.call = kSendCall, .bytes = 0}));
  const Status status = missed.rank0->Send(much, 1);
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(Message(status), HasSubstr("rank 1 did not take part in send"));

  const Pair pair = MakePair(kLong);
  std::thread other([&] {
    std::vector<char> some(1 << 20);
    EXPECT_EQ(recv(pair.rank1().number(), some.data(), some.size(), MSG_WAITALL),
              1 << 20);  // it is under way
    pair.rank0->Abort(Cancelled("by the test"));
  });
  EXPECT_EQ(pair.rank0->Send(much, 1), Cancelled("by the test"));
  other.join();
}

TEST(TcpCommunicator, ARankThatEndsWithoutReadingIsNotWaitedFor) {
  const std::vector<std::byte> much(64 << 20);  // more than connections hold
  const Pair pair = MakePair(kLong);
  SendAll(pair.rank1(), BytesOf(Header{.call = kSendCall, .bytes = 0}));
  std::thread other([&] {
    std::vector<char> some(1 << 20);
    EXPECT_EQ(recv(pair.rank1().number(), some.data(), some.size(), MSG_WAITALL),
              1 << 20);  // it is under way
    shutdown(pair.rank1().number(), SHUT_WR);
  });
  const Status status = pair.rank0->Send(much, 1);
  other.join();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
  EXPECT_THAT(Message(status), HasSubstr("rank 1 has ended"));
}

TEST(TcpCommunicator, ARankThatEndedIsFoundBehindWhatItSentWhichStays) {
  Pair pair = MakePair(kLong);
  SendAll(pair.rank1(), BytesOf(Header{.call = kSendCall, .bytes = 2}) + "ok");
  EXPECT_EQ(pair.rank0->FindEnded(), Status());
  std::vector<std::byte> data(2);
  EXPECT_EQ(pair.rank0->Receive(data, 1), Status());
  EXPECT_EQ(BytesOf(data), "ok");
  SendAll(pair.rank1(), "unread");
  shutdown(pair.rank1().number(), SHUT_WR);
  while (pair.rank0->FindEnded().ok()) std::this_thread::yield();  // until the news has come
  EXPECT_THAT(Message(pair.rank0->FindEnded()), HasSubstr("rank 1 has ended"));
}

TEST(TcpCommunicator, LargeMessagesOfAllToAllPassEachOther) {
  constexpr uint32_t kRanks = 3;
  constexpr size_t kBytes = 24 << 20;  // more than connections hold
  std::array<std::promise<std::string>, kRanks> promises;
  std::vector<std::shared_future<std::string>> told;
  for (auto& each : promises) told.push_back(each.get_future().share());
  std::vector<std::thread> threads;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      const auto made =
          ConnectTcp({.rank = rank, .ranks = kRanks, .timeout = kLong, .connect_timeout = kLong},
                     [&](const std::string& mine) {
                       promises[rank].set_value(mine);
                       std::vector<std::string> all;
                       for (const auto& each : told) all.push_back(each.get());
                       return all;
                     });
      ASSERT_TRUE(made.ok()) << made.status();
      std::vector<std::byte> all(kRanks * kBytes), mine(kBytes, static_cast<std::byte>(rank + 1));
      EXPECT_EQ((*made)->AllGather(mine, all), Status());
      for (size_t i = 0; i < all.size(); i += 4095)
        ASSERT_EQ(all[i], static_cast<std::byte>(i / kBytes + 1)) << "byte " << i << " at rank " << rank;
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(TcpCommunicator, SignalsDoNotDisturbACall) {
  struct sigaction action = {}, before = {};
  action.sa_handler = [](int) {};  // and without SA_RESTART
  ASSERT_EQ(sigaction(SIGUSR1, &action, &before), 0);
  const Pair pair = MakePair(kLong);
  const pthread_t self = pthread_self();
  std::thread other([&] {
    const std::string message = BytesOf(Header{.call = kSendCall, .bytes = 64}) + std::string(64, 'x');
    for (const char byte : message) {
      for (int i = 0; i < 50; ++i) pthread_kill(self, SIGUSR1);
      SendAll(pair.rank1(), std::string(1, byte));
    }
  });
  std::vector<std::byte> data(64);
  EXPECT_EQ(pair.rank0->Receive(data, 1), Status());
  EXPECT_EQ(BytesOf(data), std::string(64, 'x'));
  other.join();
  sigaction(SIGUSR1, &before, nullptr);
}

}  // namespace
}  // namespace terrace
