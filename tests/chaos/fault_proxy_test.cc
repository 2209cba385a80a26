#include "tests/chaos/fault_proxy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/host_port.h"
#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/chaos/fault_commands.h"

namespace terrace {
namespace {

using Passage = Faults::Passage;
using testing::HasSubstr;

sockaddr_in AddressOf(const std::string& address) {
  const HostPort parsed = ParseHostPort(address).value();
  sockaddr_in out = {};
  out.sin_family = AF_INET;
  out.sin_port = htons(parsed.port);
  CHECK(inet_pton(AF_INET, parsed.host.c_str(), &out.sin_addr) == 1);
  return out;
}

// A blocking socket. What takes a minute is a failure, not a wait.
class Socket {
 public:
  explicit Socket(int descriptor) : descriptor_(descriptor) {
    const timeval patience = {.tv_sec = 60, .tv_usec = 0};
    setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(descriptor_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  }
  ~Socket() { Close(); }
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

  int descriptor() const { return descriptor_; }
  void Close() {
    if (descriptor_ >= 0) close(std::exchange(descriptor_, -1));
  }
  int Connect(const std::string& address) const {  // errno, or 0
    const sockaddr_in to = AddressOf(address);
    return connect(descriptor_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0 ? 0 : errno;
  }
  void EndSending() const { shutdown(descriptor_, SHUT_WR); }

  // False when the other side is gone.
  bool Write(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t sent = send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  bool WriteInPieces(const std::string& bytes, uint32_t seed) const {
    std::mt19937 random(seed);
    for (size_t at = 0; at < bytes.size();) {
      const size_t size = 1 + random() % 30'000;
      if (!Write(std::string_view(bytes).substr(at, size))) return false;
      at += size;
    }
    return true;
  }

  // So many bytes, fewer at the end.
  std::string Read(size_t size) const {
    std::string out(size, '\0');
    size_t read = 0;
    while (read < size) {
      const ssize_t received = recv(descriptor_, out.data() + read, size - read, 0);
      if (received <= 0) break;
      read += static_cast<size_t>(received);
    }
    out.resize(read);
    return out;
  }
  struct Rest {
    std::string bytes;
    int error;  // 0: an orderly end
    friend bool operator==(const Rest&, const Rest&) = default;
  };
  Rest ReadToEnd() const {
    Rest rest = {};
    char bytes[65536];
    while (true) {
      const ssize_t received = recv(descriptor_, bytes, sizeof bytes, 0);
      if (received == 0) return rest;
      if (received < 0) {
        rest.error = errno;
        return rest;
      }
      rest.bytes.append(bytes, static_cast<size_t>(received));
    }
  }
  // Nothing has come yet: it never fails because the machine is slow.
  bool HasNothing() const {
    char byte;
    return recv(descriptor_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
  }

 private:
  int descriptor_;
};

Socket NewSocket() { return Socket(socket(AF_INET, SOCK_STREAM, 0)); }

// What the proxy's upstream is.
class Listener {
 public:
  explicit Listener(bool is_listening = true) {
    const sockaddr_in any = AddressOf("127.0.0.1:0");
    CHECK(bind(socket_.descriptor(), reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0);
    if (is_listening) CHECK(listen(socket_.descriptor(), 128) == 0);
  }
  std::string address() const {
    sockaddr_in own = {};
    socklen_t size = sizeof own;
    CHECK(getsockname(socket_.descriptor(), reinterpret_cast<sockaddr*>(&own), &size) == 0);
    return Concat("127.0.0.1:", ntohs(own.sin_port));
  }
  Socket Accept() const {
    const int accepted = accept(socket_.descriptor(), nullptr, nullptr);
    CHECK(accepted >= 0, "nobody came: ", std::strerror(errno));
    return Socket(accepted);
  }

 private:
  const Socket socket_ = NewSocket();
};

std::string RandomBytes(uint64_t seed, size_t size) {
  std::string out(size, '\0');
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<char>(RandomBits(seed, i));
  return out;
}

class FaultProxyTest : public testing::Test {
 protected:
  struct Pair {
    Socket client, server;
    const Socket& From(Direction direction) const {
      return direction == Direction::kToServer ? client : server;
    }
    const Socket& To(Direction direction) const {
      return direction == Direction::kToServer ? server : client;
    }
  };

  void Start(uint64_t seed = 1) {
    proxy_ = FaultProxy::Start({.upstream = listener_.address(), .seed = seed}).value();
  }
  Pair Connect() {
    Socket client = NewSocket();
    const int error = client.Connect(proxy_->address());
    CHECK(error == 0, std::strerror(error));
    return {std::move(client), listener_.Accept()};
  }
  void SetFaultsBothWays(const Faults& faults) {
    for (const Direction direction : kDirections) proxy_->SetFaults(direction, faults);
  }
  // What `bytes` are when they have passed.
  std::string Pass(const Pair& pair, Direction direction, const std::string& bytes) {
    auto written =
        std::async(std::launch::async, [&] { return pair.From(direction).WriteInPieces(bytes, 1); });
    std::string out = pair.To(direction).Read(bytes.size());
    EXPECT_TRUE(written.get());
    return out;
  }
  // By asking again and again: what the proxy has done is known to nobody else.
  void AwaitCounters(const std::function<bool(const ProxyCounters&)>& is_reached) {
    const MonoTime begin = RealClock().Now();
    while (!is_reached(proxy_->counters())) {
      ASSERT_LT(Seconds(RealClock().Now() - begin), 60);
      std::this_thread::yield();
    }
  }

  const Listener listener_;
  std::unique_ptr<FaultProxy> proxy_;
};

TEST_F(FaultProxyTest, WithoutFaultsEveryBytePassesInOrderWhateverThePieces) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(Concat("seed ", seed));
  Start(seed);
  const Pair pair = Connect();
  const std::string up = RandomBytes(seed, 3 << 20), down = RandomBytes(seed + 1, 2 << 20);
  const auto write_all = [](const Socket& socket, const std::string& bytes, uint32_t pieces) {
    return std::async(std::launch::async, [&socket, &bytes, pieces] {
      const bool is_sent = socket.WriteInPieces(bytes, pieces);
      socket.EndSending();
      return is_sent;
    });
  };
  auto asked = write_all(pair.client, up, seed), answered = write_all(pair.server, down, seed + 1);
  auto answer = std::async(std::launch::async, [&] { return pair.client.ReadToEnd(); });
  EXPECT_TRUE(pair.server.ReadToEnd() == (Socket::Rest{up, 0}));
  EXPECT_TRUE(answer.get() == (Socket::Rest{down, 0}));
  EXPECT_TRUE(asked.get() && answered.get());
  AwaitCounters([](const ProxyCounters& counters) { return counters.open == 0; });
  const ProxyCounters counters = proxy_->counters();
  EXPECT_EQ(counters.connections, 1u);
  EXPECT_EQ(counters.passed.to_server, up.size());
  EXPECT_EQ(counters.passed.to_client, down.size());
}

TEST_F(FaultProxyTest, AnEndOfOneDirectionIsPassedOnAndTheOtherGoesOn) {
  Start();
  const Pair pair = Connect();
  pair.client.Write("question");
  pair.client.EndSending();
  EXPECT_EQ(pair.server.ReadToEnd(), (Socket::Rest{"question", 0}));
  pair.server.Write("answer");
  pair.server.EndSending();
  EXPECT_EQ(pair.client.ReadToEnd(), (Socket::Rest{"answer", 0}));
}

TEST_F(FaultProxyTest, ACutPassesExactlyItsBytes) {
  const std::string bytes = RandomBytes(/*seed=*/3, 1 << 20);
  for (const Direction direction : kDirections) {
    for (const uint64_t size : {0, 1, 1000, 300'000}) {
      SCOPED_TRACE(Concat("direction ", static_cast<int>(direction), ", ", size, " bytes"));
      Start();
      const Pair pair = Connect();
      proxy_->Arm(direction, {.bytes = size});
      auto written = std::async(std::launch::async, [&] { pair.From(direction).WriteInPieces(bytes, 1); });
      const Socket::Rest rest = pair.To(direction).ReadToEnd();
      EXPECT_TRUE(rest.bytes == bytes.substr(0, size)) << rest.bytes.size();
      EXPECT_EQ(rest.error, 0);
      written.get();
      EXPECT_EQ(pair.From(direction).ReadToEnd().bytes, "") << "the other side is told too";
      EXPECT_EQ(proxy_->counters().passed[direction], size);
      EXPECT_EQ(Pass(Connect(), direction, bytes.substr(0, 5000)), bytes.substr(0, 5000)) << "it is over";
    }
  }
}

TEST_F(FaultProxyTest, ACutWithAResetIsOne) {
  Start();
  const Pair pair = Connect();
  proxy_->Arm(Direction::kToClient, {.bytes = 4, .with_reset = true});
  pair.server.Write("more than that");
  EXPECT_EQ(pair.client.ReadToEnd().error, ECONNRESET);
  EXPECT_EQ(pair.server.ReadToEnd().error, ECONNRESET);
}

TEST_F(FaultProxyTest, AStalledDirectionLosesNothingAndTheOtherGoesOn) {
  Start();
  const Pair pair = Connect();
  proxy_->SetFaults(Direction::kToClient, {.passage = Passage::kStalled});
  pair.server.Write("held back");
  EXPECT_EQ(Pass(pair, Direction::kToServer, "question"), "question");
  EXPECT_TRUE(pair.client.HasNothing());
  pair.server.Write(" and more");
  pair.server.EndSending();
  EXPECT_TRUE(pair.client.HasNothing());
  proxy_->SetFaults(Direction::kToClient, {});
  EXPECT_EQ(pair.client.ReadToEnd(), (Socket::Rest{"held back and more", 0}));
}

TEST_F(FaultProxyTest, StallsInTheMiddleOfALongStreamLoseNothing) {
  Start();
  const Pair pair = Connect();
  const std::string bytes = RandomBytes(/*seed=*/5, 4 << 20);
  auto written = std::async(std::launch::async, [&] { return pair.server.WriteInPieces(bytes, 2); });
  std::string read;
  while (read.size() < bytes.size()) {
    proxy_->SetFaults(Direction::kToClient, {.passage = Passage::kStalled});
    proxy_->SetFaults(Direction::kToClient, {});
    const size_t size = std::min<size_t>(100'000, bytes.size() - read.size());
    read += pair.client.Read(size);
    ASSERT_TRUE(read.size() % 100'000 == 0 || read.size() == bytes.size()) << "it has ended early";
  }
  EXPECT_TRUE(read == bytes);
  EXPECT_TRUE(written.get());
}

TEST_F(FaultProxyTest, ABlackHoleTakesEverythingTellsNobodyAndEndsInAReset) {
  Start();
  const Pair pair = Connect();
  const std::string bytes = RandomBytes(/*seed=*/7, 1 << 20);
  SetFaultsBothWays({.passage = Passage::kSwallowed});
  EXPECT_TRUE(pair.client.WriteInPieces(bytes, 1)) << "it is taken";
  AwaitCounters([&](const ProxyCounters& counters) { return counters.lost.to_server == bytes.size(); });
  EXPECT_TRUE(pair.server.HasNothing());
  EXPECT_TRUE(pair.client.HasNothing());
  SetFaultsBothWays({});
  EXPECT_EQ(pair.server.ReadToEnd(), (Socket::Rest{"", ECONNRESET})) << "no stream goes on behind a hole";
  EXPECT_EQ(pair.client.ReadToEnd(), (Socket::Rest{"", ECONNRESET}));
}

TEST_F(FaultProxyTest, ABlackHoleThatTookNothingLeavesTheConnectionWhole) {
  Start();
  const Pair pair = Connect();
  SetFaultsBothWays({.passage = Passage::kSwallowed});
  SetFaultsBothWays({});
  EXPECT_EQ(Pass(pair, Direction::kToServer, "question"), "question");
}

TEST_F(FaultProxyTest, AHalfCloseEndsOneDirectionAndTheOtherGoesOn) {
  Start();
  const Pair pair = Connect();
  EXPECT_EQ(Pass(pair, Direction::kToServer, "question"), "question");
  proxy_->HalfClose(Direction::kToServer);
  EXPECT_EQ(pair.server.ReadToEnd(), (Socket::Rest{"", 0}));
  EXPECT_TRUE(pair.client.Write("nobody hears this"));
  EXPECT_EQ(Pass(pair, Direction::kToClient, "answer"), "answer");
}

TEST_F(FaultProxyTest, AResetIsOneForBothSidesAndNotForThoseWhoComeLater) {
  Start();
  const Pair pair = Connect(), other = Connect();
  proxy_->Reset();
  for (const Pair* each : {&pair, &other}) {
    EXPECT_EQ(each->client.ReadToEnd().error, ECONNRESET);
    EXPECT_EQ(each->server.ReadToEnd().error, ECONNRESET);
  }
  EXPECT_EQ(Pass(Connect(), Direction::kToServer, "question"), "question");
}

TEST_F(FaultProxyTest, WhileItRefusesNobodyListensAndThePortStaysItsOwn) {
  Start();
  const Pair pair = Connect();
  const std::string address = proxy_->address();
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(proxy_->SetRefusing(true).ok());
    EXPECT_EQ(NewSocket().Connect(address), ECONNREFUSED);
    EXPECT_EQ(Pass(pair, Direction::kToServer, "still here"), "still here");
    ASSERT_TRUE(proxy_->SetRefusing(false).ok());
    EXPECT_EQ(proxy_->address(), address);
    EXPECT_EQ(Pass(Connect(), Direction::kToClient, "answer"), "answer");
  }
}

TEST_F(FaultProxyTest, WhereNobodyIsUpstreamClientsAreReset) {
  const Listener deaf(/*is_listening=*/false);
  proxy_ = FaultProxy::Start({.upstream = deaf.address()}).value();
  const Socket client = NewSocket();
  ASSERT_EQ(client.Connect(proxy_->address()), 0);
  EXPECT_EQ(client.ReadToEnd(), (Socket::Rest{"", ECONNRESET}));
}

TEST_F(FaultProxyTest, CorruptionIsOfTheNamedBytesAndTheSeeds) {
  const std::string bytes = RandomBytes(/*seed=*/9, 10'000);
  const auto corrupted = [&](uint64_t seed) {
    Start(seed);
    proxy_->SetFaults(Direction::kToClient, {.corruption = Faults::Corruption{.first = 5, .every = 100}});
    const Pair pair = Connect();
    EXPECT_TRUE(Pass(pair, Direction::kToServer, bytes) == bytes) << "the other direction is whole";
    return Pass(pair, Direction::kToClient, bytes);
  };
  const std::string once = corrupted(1);
  ASSERT_EQ(once.size(), bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) ASSERT_EQ(once[i] != bytes[i], i % 100 == 5) << i;
  EXPECT_TRUE(corrupted(1) == once);
  EXPECT_FALSE(corrupted(2) == once);
}

TEST_F(FaultProxyTest, DelayJitterAndRateKeepEveryByteAndTheirOrder) {
  Start();
  SetFaultsBothWays({.delay = std::chrono::milliseconds(1),
                     .jitter = std::chrono::milliseconds(1),
                     .bytes_per_second = 10'000'000});
  const Pair pair = Connect();
  const std::string bytes = RandomBytes(/*seed=*/11, 200'000);
  for (const Direction direction : kDirections) EXPECT_TRUE(Pass(pair, direction, bytes) == bytes);
}

TEST_F(FaultProxyTest, HealingEndsEveryFault) {
  Start();
  const Pair pair = Connect();
  SetFaultsBothWays({.passage = Passage::kStalled, .delay = std::chrono::hours(1), .bytes_per_second = 1});
  for (const Direction direction : kDirections) proxy_->Arm(direction, {.bytes = 3});
  ASSERT_TRUE(proxy_->SetRefusing(true).ok());
  pair.server.Write("held back");
  ASSERT_TRUE(proxy_->Heal().ok());
  EXPECT_EQ(pair.client.Read(9), "held back");
  EXPECT_EQ(Pass(Connect(), Direction::kToServer, "question"), "question");
}

TEST_F(FaultProxyTest, ItEndsItsConnectionsWhenItGoes) {
  Start();
  const Pair pair = Connect();
  proxy_->SetFaults(Direction::kToClient, {.delay = std::chrono::hours(1)});
  pair.server.Write("never to arrive");
  proxy_.reset();
  EXPECT_EQ(pair.client.ReadToEnd().bytes, "");
}

TEST_F(FaultProxyTest, CommandsSayWhatTheFaultsAre) {
  Start();
  const struct {
    const char* line;
    bool is_of_client;  // which direction is to have changed too
    Faults want;
  } cases[] = {
      {"delay both 20 5",
       true,
       {.delay = std::chrono::milliseconds(20), .jitter = std::chrono::milliseconds(5)}},
      {"rate c2s 1000", false, {.bytes_per_second = 1000}},
      {"corrupt both 7", true, {.corruption = Faults::Corruption{.first = 7}}},
      {"corrupt c2s 7 9", false, {.corruption = Faults::Corruption{.first = 7, .every = 9}}},
      {"stall both", true, {.passage = Passage::kStalled}},
      {"swallow c2s", false, {.passage = Passage::kSwallowed}},
  };
  for (const auto& c : cases) {
    ASSERT_EQ(RunFaultCommand(*proxy_, c.line).value(), "") << c.line;
    for (const Direction direction : kDirections) {
      const bool has_changed = direction == Direction::kToServer || c.is_of_client;
      const Faults got = proxy_->faults(direction), want = has_changed ? c.want : Faults();
      EXPECT_EQ(got.passage, want.passage) << c.line;
      EXPECT_EQ(got.delay, want.delay) << c.line;
      EXPECT_EQ(got.jitter, want.jitter) << c.line;
      EXPECT_EQ(got.bytes_per_second, want.bytes_per_second) << c.line;
      EXPECT_EQ(got.corruption, want.corruption) << c.line;
    }
    ASSERT_EQ(RunFaultCommand(*proxy_, "clear").value(), "");
  }
  for (const char* line :
       {"refuse", "accept", "reset", "half-close s2c", "pass both", "cut s2c 5", "cut c2s 5 reset"})
    EXPECT_EQ(RunFaultCommand(*proxy_, line).value(), "") << line;
  EXPECT_THAT(RunFaultCommand(*proxy_, "stats").value(), HasSubstr("\"connections\":0"));
}

TEST_F(FaultProxyTest, WrongCommandsAreErrorsThatNameWhatIsWrong) {
  Start();
  const std::pair<const char*, const char*> cases[] = {{"", "no command"},
                                                       {"explode", "explode"},
                                                       {"stall", "stall"},
                                                       {"stall up", "up"},
                                                       {"explode both", "explode"},
                                                       {"delay both", "1 to 2 numbers"},
                                                       {"delay both x", "\"x\""},
                                                       {"delay both -1", "\"-1\""},
                                                       {"rate c2s 1 2", "1 to 1 numbers"},
                                                       {"cut s2c reset", "1 to 1"},
                                                       {"rate c2s 9999999999999", "9999999999999"}};
  for (const auto& [line, wrong] : cases) {
    const auto told = RunFaultCommand(*proxy_, line);
    ASSERT_FALSE(told.ok()) << line;
    EXPECT_THAT(Message(told.status()), HasSubstr(wrong)) << line;
  }
}

TEST(FaultProxy, AnAddressThatIsTakenIsAnError) {
  const Listener taken;
  const auto proxy = FaultProxy::Start({.listen = taken.address(), .upstream = "127.0.0.1:1"});
  ASSERT_FALSE(proxy.ok());
  EXPECT_THAT(Message(proxy.status()), HasSubstr(taken.address()));
}

}  // namespace
}  // namespace terrace
