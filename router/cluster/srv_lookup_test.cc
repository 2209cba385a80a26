#include "router/cluster/srv_lookup.h"

#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Bytes = std::vector<unsigned char>;

Bytes operator+(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Bytes Short(unsigned value) {
  return {static_cast<unsigned char>(value >> 8), static_cast<unsigned char>(value)};
}

// "a.b" as labels.
Bytes Name(const std::string& name) {
  Bytes out;
  for (size_t begin = 0; begin < name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    out.push_back(static_cast<unsigned char>(end - begin));
    out.insert(out.end(), name.begin() + static_cast<ptrdiff_t>(begin),
               name.begin() + static_cast<ptrdiff_t>(end));
    begin = end + 1;
  }
  return out + Bytes{0};
}

constexpr unsigned kCname = 5, kSrv = 33;

Bytes Record(unsigned type, const Bytes& data) {
  const Bytes question_name = {0xc0, 12};  // as in the question
  return question_name + Short(type) + Short(1) + Short(0) + Short(30) +
         Short(static_cast<unsigned>(data.size())) + data;
}

Bytes SrvData(unsigned port, const Bytes& target) { return Short(10) + Short(20) + Short(port) + target; }

// The answer to a question for the SRV records of _grpc._tcp.w.
Bytes Answer(const std::vector<Bytes>& records) {
  Bytes out = Short(1) + Short(0x8180) + Short(1) + Short(static_cast<unsigned>(records.size())) + Short(0) +
              Short(0) + Name("_grpc._tcp.w") + Short(kSrv) + Short(1);
  for (const Bytes& record : records) out = out + record;
  return out;
}

std::vector<std::string> Parsed(const Bytes& message) {
  const auto found = ParseSrvAnswer(message);
  EXPECT_TRUE(found.ok()) << found.status();
  std::vector<std::string> out;
  if (found.ok()) std::ranges::transform(*found, std::back_inserter(out), &HostPort::ToString);
  return out;
}

TEST(SrvAnswer, HasEveryHostWithItsPort) {
  const Bytes suffix = {0xc0, 23};  // "w" of the question
  EXPECT_THAT(Parsed(Answer({Record(kSrv, SrvData(8101, Name("pod-0.workers"))),
                             Record(kSrv, SrvData(7, Bytes{1, 'x'} + suffix))})),
              ElementsAre("pod-0.workers:8101", "x.w:7"));
}

TEST(SrvAnswer, WhatIsNoPlaceOfTheServiceIsLeftOut) {
  EXPECT_THAT(Parsed(Answer({})), IsEmpty());
  EXPECT_THAT(Parsed(Answer({Record(kSrv, SrvData(8101, Name("")))})), IsEmpty())
      << "the service is not there";
  EXPECT_THAT(Parsed(Answer({Record(kSrv, SrvData(0, Name("a")))})), IsEmpty());
  EXPECT_THAT(Parsed(Answer({Record(kCname, Name("b")), Record(kSrv, SrvData(1, Name("a")))})),
              ElementsAre("a:1"));
}

TEST(SrvAnswer, ATruncatedOneIsAnErrorAtEveryByte) {
  const Bytes whole = Answer({Record(kSrv, SrvData(1, Name("a"))), Record(kSrv, SrvData(2, Name("b")))});
  for (size_t size = 0; size < whole.size(); ++size) {
    const auto found = ParseSrvAnswer(std::span(whole).first(size));
    EXPECT_EQ(found.status().code(), StatusCode::kDataLoss) << size;
  }
}

// A name server on loopback that answers every question in one way, on a thread of its own.
class NameServer {
 public:
  // `code`: of the response, as of RFC 1035.
  NameServer(unsigned code, std::vector<Bytes> records) : code_(code), records_(std::move(records)) {
    address_.sin_family = AF_INET;
    address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address_);
    CHECK(bind(socket_, reinterpret_cast<sockaddr*>(&address_), size) == 0);
    CHECK(getsockname(socket_, reinterpret_cast<sockaddr*>(&address_), &size) == 0);
    thread_ = std::jthread([this] { Run(); });
  }
  ~NameServer() {
    is_over_ = true;
    const int waker = socket(AF_INET, SOCK_DGRAM, 0);
    sendto(waker, "", 0, 0, reinterpret_cast<sockaddr*>(&address_), sizeof(address_));
    thread_.join();
    close(waker);
    close(socket_);
  }
  sockaddr_in address() const { return address_; }
  int questions() const { return questions_; }

 private:
  void Run() {
    for (;;) {
      Bytes question(NS_PACKETSZ);
      sockaddr_in client{};
      socklen_t size = sizeof(client);
      const ssize_t received =
          recvfrom(socket_, question.data(), question.size(), 0, reinterpret_cast<sockaddr*>(&client), &size);
      if (is_over_) return;
      if (received <= kHeader) continue;
      ++questions_;
      question.resize(static_cast<size_t>(received));
      const Bytes answer = AnswerTo(question);
      sendto(socket_, answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&client), size);
    }
  }
  Bytes AnswerTo(const Bytes& question) const {
    size_t end = kHeader;  // of the question's name
    while (end < question.size() && question[end] != 0) end += question[end] + 1u;
    end = std::min(end + 5, question.size());  // its root label, type and class
    Bytes out = Bytes{question[0], question[1]} + Short(0x8180 | code_) + Short(1) +
                Short(static_cast<unsigned>(records_.size())) + Short(0) + Short(0) +
                Bytes(question.begin() + kHeader, question.begin() + static_cast<ptrdiff_t>(end));
    for (const Bytes& record : records_) out = out + record;
    return out;
  }

  static constexpr int kHeader = 12;  // bytes
  const unsigned code_;
  const std::vector<Bytes> records_;
  const int socket_ = socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in address_{};
  std::atomic<bool> is_over_ = false;
  std::atomic<int> questions_ = 0;
  std::jthread thread_;
};

StatusOr<std::vector<HostPort>> AskServer(const NameServer& server) {
  const sockaddr_in servers[] = {server.address()};
  return SrvLookupAt(servers, "_grpc._tcp.w.");  // ends in a dot: no search list
}

TEST(SrvLookup, TheServersRecordsAreTheAnswer) {
  const NameServer server(0, {Record(kSrv, SrvData(8101, Name("pod-0.workers"))),
                              Record(kSrv, SrvData(7, Name("pod-1.workers")))});
  const auto found = AskServer(server);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 2u);
  EXPECT_EQ((*found)[0].ToString(), "pod-0.workers:8101");
  EXPECT_EQ((*found)[1].ToString(), "pod-1.workers:7");
  EXPECT_EQ(server.questions(), 1);
}

TEST(SrvLookup, ANameWithoutRecordsOneThatDoesNotExistAndAFailureAreToldApart) {
  constexpr unsigned kServerFailed = 2, kNoSuchName = 3, kRefused = 5;
  const auto none = AskServer(NameServer(0, {}));
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_THAT(*none, IsEmpty());
  EXPECT_EQ(AskServer(NameServer(kNoSuchName, {})).status().code(), StatusCode::kNotFound);
  for (const unsigned failure : {kServerFailed, kRefused}) {
    const Status error = AskServer(NameServer(failure, {})).status();
    EXPECT_EQ(error.code(), StatusCode::kUnavailable) << failure;
    EXPECT_THAT(Message(error), HasSubstr("_grpc._tcp.w."));
  }
}

TEST(SrvAnswer, AnyBytesAreAnAnswerOrAnError) {
  const Bytes whole =
      Answer({Record(kSrv, SrvData(1, Name("a"))), Record(kSrv, SrvData(2, Bytes{0xc0, 12}))});
  for (uint64_t seed = 0; seed < 20'000; ++seed) {
    Bytes bytes = whole;
    for (uint64_t change = 0; change < 1 + seed % 4; ++change) {
      bytes[RandomBits(seed, change, 0) % bytes.size()] =
          static_cast<unsigned char>(RandomBits(seed, change, 1));
    }
    const auto found = ParseSrvAnswer(bytes);
    EXPECT_TRUE(found.ok() || found.status().code() == StatusCode::kDataLoss) << seed;
  }
}

}  // namespace
}  // namespace terrace
