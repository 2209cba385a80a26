#include "router/cluster/srv_lookup.h"

#include <algorithm>

#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::ElementsAre;
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
