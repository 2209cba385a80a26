#include "tests/chaos/faulty_flow.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using Kind = FaultyFlow::Next::Kind;
using Passage = Faults::Passage;
using std::chrono::milliseconds;
using std::chrono::seconds;

const MonoTime kStart = MonoTime(seconds(1000));

std::string RandomBytes(uint64_t seed, size_t size) {
  std::string out(size, '\0');
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<char>(RandomBits(seed, i));
  return out;
}

// All that may be sent at `now`.
std::string Take(FaultyFlow& flow, MonoTime now) {
  std::string out;
  for (FaultyFlow::Next next = flow.Peek(now); next.kind == Kind::kSend; next = flow.Peek(now)) {
    out += next.bytes;
    flow.Pop(next.bytes.size(), now);
  }
  return out;
}

// What comes out in the end, when time goes as the flow asks for it.
std::string TakeAll(FaultyFlow& flow, MonoTime& now) {
  std::string out = Take(flow, now);
  for (FaultyFlow::Next next = flow.Peek(now); next.kind == Kind::kWait; next = flow.Peek(now)) {
    EXPECT_GT(next.at, now);
    now = next.at;
    out += Take(flow, now);
  }
  return out;
}

// `bytes` in pieces of 1 to `most` bytes.
std::vector<std::string> CutUp(const std::string& bytes, size_t most, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::string> pieces;
  for (size_t at = 0; at < bytes.size(); at += pieces.back().size())
    pieces.push_back(bytes.substr(at, 1 + random() % most));
  return pieces;
}

TEST(FaultyFlow, WithoutFaultsEveryByteComesOutInOrderAtOnceWhateverThePieces) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const std::string bytes = RandomBytes(seed, 50'000);
  FaultyFlow flow(seed, 0);
  std::string out;
  for (const std::string& piece : CutUp(bytes, 3000, seed)) {
    flow.Push(piece, kStart);
    std::mt19937 random(seed + static_cast<uint32_t>(out.size()));
    for (auto next = flow.Peek(kStart); next.kind == Kind::kSend && random() % 8 > 0;
         next = flow.Peek(kStart)) {
      const size_t size = 1 + random() % next.bytes.size();  // as much as the socket took
      out += next.bytes.substr(0, size);
      flow.Pop(size, kStart);
    }
  }
  out += Take(flow, kStart);
  EXPECT_TRUE(out == bytes);
  EXPECT_EQ(flow.Peek(kStart).kind, Kind::kNothing);
}

TEST(FaultyFlow, TheEndComesBehindTheLastByteAndNothingBehindIt) {
  FaultyFlow flow(1, 0);
  flow.Set({.delay = milliseconds(10)});
  flow.Push("last words", kStart);
  flow.PushEnd(kStart);
  flow.Push("more", kStart);
  EXPECT_EQ(flow.Peek(kStart).kind, Kind::kWait);
  EXPECT_EQ(Take(flow, kStart + milliseconds(10)), "last words");
  EXPECT_EQ(flow.Peek(kStart + milliseconds(10)).kind, Kind::kEnd);
  flow.PopEnd();
  EXPECT_TRUE(flow.is_over());
  EXPECT_EQ(flow.Peek(kStart + milliseconds(10)).kind, Kind::kNothing);
}

TEST(FaultyFlow, DelayAndJitterHoldEachPieceBackAndKeepTheOrder) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  FaultyFlow flow(seed, 0);
  flow.Set({.delay = milliseconds(20), .jitter = milliseconds(30)});
  std::string bytes, out;
  for (int i = 0; i < 100; ++i) {
    const std::string piece(1, static_cast<char>(i));
    const MonoTime now = kStart + milliseconds(i);
    flow.Push(piece, now);
    bytes += piece;
    out += Take(flow, now);
    EXPECT_LE(out.size(), static_cast<size_t>(std::max(0, i - 19))) << "before its delay";
    EXPECT_GE(out.size(), static_cast<size_t>(std::max(0, i - 49))) << "after delay and jitter";
  }
  out += Take(flow, kStart + milliseconds(99 + 50));
  EXPECT_EQ(out, bytes);
}

TEST(FaultyFlow, TheSameSeedGivesTheSameJitterAndAnotherSeedAnother) {
  const auto due = [](uint64_t seed, uint64_t stream) {
    FaultyFlow flow(seed, stream);
    flow.Set({.jitter = seconds(1)});
    flow.Push("x", kStart);
    return flow.Peek(kStart).at;
  };
  EXPECT_EQ(due(1, 0), due(1, 0));
  EXPECT_NE(due(1, 0), due(2, 0));
  EXPECT_NE(due(1, 0), due(1, 1));
}

TEST(FaultyFlow, WhatIsHeldGoesAtOnceWhenTheDelayIsOver) {
  FaultyFlow flow(1, 0);
  flow.Set({.delay = seconds(3600)});
  flow.Push("held", kStart);
  flow.PushEnd(kStart);
  EXPECT_EQ(Take(flow, kStart), "");
  flow.Set({});
  EXPECT_EQ(Take(flow, kStart), "held");
  EXPECT_EQ(flow.Peek(kStart).kind, Kind::kEnd);
}

TEST(FaultyFlow, ARateGivesItsBytesASecond) {
  for (const uint64_t rate : {1, 1000, 1'000'000}) {
    FaultyFlow flow(1, 0);
    flow.Set({.bytes_per_second = rate});
    const std::string bytes = RandomBytes(rate, std::min<size_t>(3 * rate, 200'000));
    flow.Push(bytes, kStart);
    MonoTime now = kStart;
    EXPECT_TRUE(TakeAll(flow, now) == bytes);
    const double wanted = static_cast<double>(bytes.size()) / static_cast<double>(rate);
    // The last piece, of a fiftieth of a second or one byte, is sent at the beginning of its time.
    EXPECT_LE(Seconds(now - kStart), wanted) << rate;
    EXPECT_GE(Seconds(now - kStart), wanted - std::max(0.02, 1.0 / static_cast<double>(rate)) - 1e-3) << rate;
  }
}

TEST(FaultyFlow, CorruptionFlipsOneBitOfEachNamedByteWhateverThePieces) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  const std::string bytes = RandomBytes(seed, 5000);
  const std::pair<uint64_t, uint64_t> cases[] = {{0, 1}, {17, 100}, {1234, 0}, {9999, 7}};
  for (const auto& [first, every] : cases) {
    std::string outs[2];
    for (uint32_t way = 0; way < 2; ++way) {
      FaultyFlow flow(seed, 3);
      flow.Push("before", kStart);
      flow.Set({.corruption = Faults::Corruption{.first = first, .every = every}});
      for (const std::string& piece : CutUp(bytes, 1 + 999 * way, seed)) flow.Push(piece, kStart);
      outs[way] = Take(flow, kStart);
    }
    EXPECT_TRUE(outs[0] == outs[1]);
    const std::string& out = outs[0];
    ASSERT_EQ(out.substr(0, 6), "before");
    for (size_t i = 0; i < bytes.size(); ++i) {
      const bool is_named = i >= first && (every > 0 ? (i - first) % every == 0 : i == first);
      const auto flipped = static_cast<uint8_t>(out[6 + i] ^ bytes[i]);
      ASSERT_EQ(std::popcount(flipped), is_named ? 1 : 0)
          << "byte " << i << " first " << first << " every " << every;
    }
  }
}

TEST(FaultyFlow, TheBitsThatFlipAreTheSeeds) {
  const auto corrupted = [](uint64_t seed, uint64_t stream) {
    FaultyFlow flow(seed, stream);
    flow.Set({.corruption = Faults::Corruption{.every = 1}});
    flow.Push(std::string(100, '\0'), kStart);
    return Take(flow, kStart);
  };
  EXPECT_EQ(corrupted(1, 0), corrupted(1, 0));
  EXPECT_NE(corrupted(1, 0), corrupted(2, 0));
  EXPECT_NE(corrupted(1, 0), corrupted(1, 1));
}

TEST(FaultyFlow, AStallSendsNothingReadsNothingAndLosesNothing) {
  FaultyFlow flow(1, 0);
  flow.Push("before ", kStart);
  flow.Set({.passage = Passage::kStalled});
  EXPECT_FALSE(flow.wants_more());
  flow.Push("and during", kStart);  // had been read already
  flow.PushEnd(kStart);
  EXPECT_EQ(flow.Peek(kStart + seconds(100)).kind, Kind::kNothing);
  flow.Set({});
  EXPECT_TRUE(flow.wants_more());
  EXPECT_EQ(Take(flow, kStart), "before and during");
  EXPECT_EQ(flow.Peek(kStart).kind, Kind::kEnd);
  EXPECT_FALSE(flow.has_hole());
}

TEST(FaultyFlow, WhatIsSwallowedIsAHole) {
  FaultyFlow flow(1, 0);
  flow.Push("before", kStart);
  flow.Set({.passage = Passage::kSwallowed});
  EXPECT_TRUE(flow.wants_more());
  EXPECT_FALSE(flow.has_hole()) << "nothing was lost yet";
  flow.Push("lost", kStart);
  EXPECT_EQ(Take(flow, kStart), "before") << "it had passed already";
  EXPECT_EQ(flow.lost(), 4u);
  EXPECT_TRUE(flow.has_hole());

  FaultyFlow ended(1, 0);
  ended.Set({.passage = Passage::kSwallowed});
  ended.PushEnd(kStart);
  EXPECT_EQ(ended.Peek(kStart).kind, Kind::kNothing);
  EXPECT_TRUE(ended.has_hole());
}

TEST(FaultyFlow, WantsNoMoreThanItMayHold) {
  FaultyFlow flow(1, 0);
  flow.Set({.delay = seconds(1)});
  const std::string piece(16 << 10, 'x');
  size_t pushed = 0;
  for (; flow.wants_more(); pushed += piece.size()) flow.Push(piece, kStart);
  EXPECT_EQ(pushed, FaultyFlow::kMostHeld);
  EXPECT_EQ(Take(flow, kStart + seconds(1)).size(), pushed);
  EXPECT_TRUE(flow.wants_more());
}

}  // namespace
}  // namespace terrace
