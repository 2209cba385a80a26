// Every Communicator does the same: what calls give, which rank an error names, and that nobody waits for a
// rank that has ended. A test includes this, once, and instantiates EveryCommunicator.
#pragma once

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <functional>
#include <latch>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/rng.h"
#include "gtest/gtest.h"
#include "worker/parallel/communicator.h"
#include "worker/parallel/on_each_rank.h"
#include "worker/parallel/tree_sum.h"

namespace terrace {
namespace {

constexpr Duration kLong = std::chrono::seconds(120);  // no rank misses it
constexpr Duration kShort = std::chrono::milliseconds(1);

using Group = std::vector<std::unique_ptr<Communicator>>;

// A rendezvous of threads.
class Board {
 public:
  explicit Board(uint32_t ranks) : told_(ranks) {}

  std::vector<std::string> Tell(uint32_t rank, const std::string& mine) {
    std::unique_lock lock(mutex_);
    told_[rank] = mine;
    ++count_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return count_ == told_.size(); });
    return told_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t count_ = 0;
  std::vector<std::string> told_;
};

struct Implementation {
  const char* name;
  Group (*make)(uint32_t ranks, Duration timeout);
  uint32_t (*most_ranks)() = [] { return 4u; };  // of which there can be groups here
};

class EveryCommunicator : public testing::TestWithParam<Implementation> {
 protected:
  EveryCommunicator() { std::signal(SIGPIPE, SIG_IGN); }
  static Group Make(uint32_t ranks, Duration timeout) { return GetParam().make(ranks, timeout); }
};

#define SKIP_WITHOUT_RANKS(ranks)        \
  if ((ranks) > GetParam().most_ranks()) \
  GTEST_SKIP() << "not run with " << (ranks) << " ranks: here are devices for " << GetParam().most_ranks()

// Of many magnitudes, so that another order of adding shows.
std::vector<float> RandomValues(size_t count, uint64_t seed) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<float>(std::exp2(8 * RandomUniform(seed, i, 0)));
    out[i] = magnitude * static_cast<float>(RandomUniform(seed, i, 1) - 0.5);
  }
  return out;
}

std::vector<std::byte> RandomBytes(size_t count, uint64_t seed) {
  std::vector<std::byte> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<std::byte>(RandomBits(seed, i));
  return out;
}

// Around the bytes at which messages are sent in another way.
constexpr size_t kCounts[] = {0, 1, 5, 1000, 16384, 16385, 16388, 65536, 70001};

TEST_P(EveryCommunicator, SumsAreThoseOfTheTreeOnEveryRankToTheBit) {
  for (const uint32_t ranks : {1u, 2u, 3u, 4u}) {
    SKIP_WITHOUT_RANKS(ranks);
    const Group group = Make(ranks, kLong);
    OnEachRank(ranks, [&](uint32_t rank) {
      for (const size_t count : kCounts) {
        std::vector<std::vector<float>> values;
        std::vector<float*> parts;
        for (uint32_t each = 0; each < ranks; ++each) values.push_back(RandomValues(count, count + each));
        for (auto& each : values) parts.push_back(each.data());
        std::vector<float> sum = values[rank];
        const Status status = group[rank]->AllReduceSum(sum);
        EXPECT_TRUE(status.ok()) << status;
        AddTree(parts, 0, count);
        EXPECT_EQ(sum, values[0]) << count << " values, rank " << rank << " of " << ranks;
      }
    });
  }
}

TEST_P(EveryCommunicator, AllGatherPutsRanksInOrder) {
  const uint32_t ranks = 3;
  SKIP_WITHOUT_RANKS(ranks);
  const Group group = Make(ranks, kLong);
  OnEachRank(ranks, [&](uint32_t rank) {
    for (const size_t count : kCounts) {
      std::vector<std::byte> all(ranks * count), want;
      for (uint32_t each = 0; each < ranks; ++each) {
        const auto bytes = RandomBytes(count, each);
        want.insert(want.end(), bytes.begin(), bytes.end());
      }
      const Status status = group[rank]->AllGather(RandomBytes(count, rank), all);
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_EQ(all, want) << count << " bytes, rank " << rank;
    }
  });
}

TEST_P(EveryCommunicator, BroadcastGivesAllWhatTheRootHas) {
  const uint32_t ranks = 3;
  SKIP_WITHOUT_RANKS(ranks);
  const Group group = Make(ranks, kLong);
  OnEachRank(ranks, [&](uint32_t rank) {
    for (uint32_t root = 0; root < ranks; ++root) {
      for (const size_t count : kCounts) {
        auto data = RandomBytes(count, rank);
        const Status status = group[rank]->Broadcast(data, root);
        EXPECT_TRUE(status.ok()) << status;
        EXPECT_EQ(data, RandomBytes(count, root)) << count << " bytes, rank " << rank << ", root " << root;
      }
    }
  });
}

TEST_P(EveryCommunicator, MessagesArriveInTheOrderTheyWereSent) {
  const uint32_t ranks = 3;  // each hands on what it got
  SKIP_WITHOUT_RANKS(ranks);
  const Group group = Make(ranks, kLong);
  OnEachRank(ranks, [&](uint32_t rank) {
    for (const size_t count : kCounts) {
      auto data = RandomBytes(rank == 0 ? count : 0, /*seed=*/count);
      data.resize(count);
      Status status = rank == 0 ? Status() : group[rank]->Receive(data, rank - 1);
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_EQ(data, RandomBytes(count, /*seed=*/count)) << count << " bytes, rank " << rank;
      if (rank + 1 < ranks) status = group[rank]->Send(data, rank + 1);
      EXPECT_TRUE(status.ok()) << status;
    }
  });
}

TEST_P(EveryCommunicator, RanksInARingPassOnAtOnce) {
  const uint32_t ranks = 3;
  SKIP_WITHOUT_RANKS(ranks);
  const Group group = Make(ranks, kLong);
  OnEachRank(ranks, [&](uint32_t rank) {
    const uint32_t next = (rank + 1) % ranks, before = (rank + ranks - 1) % ranks;
    for (const size_t count : kCounts) {
      const auto mine = RandomBytes(count, /*seed=*/rank);
      std::vector<std::byte> theirs(count);
      const Status status = group[rank]->SendReceive(Communicator::Outgoing{.to = next, .data = mine},
                                                     Communicator::Incoming{.from = before, .data = theirs});
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_EQ(theirs, RandomBytes(count, /*seed=*/before)) << count << " bytes, rank " << rank;
    }
    EXPECT_EQ(group[rank]->SendReceive(std::nullopt, std::nullopt), Status());
  });
}

TEST_P(EveryCommunicator, NobodyPassesABarrierBeforeAllCame) {
  const uint32_t ranks = 4;
  SKIP_WITHOUT_RANKS(ranks);
  const Group group = Make(ranks, kLong);
  std::atomic<uint32_t> came = 0;
  OnEachRank(ranks, [&](uint32_t rank) {
    for (uint32_t round = 1; round <= 20; ++round) {
      ++came;
      const Status status = group[rank]->Barrier();
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_GE(came.load(), round * ranks);
    }
  });
}

struct NamedCall {
  const char* name;
  std::function<Status(Communicator&)> call;
};

std::function<Status(Communicator&)> Reduce(size_t count) {
  return [count](Communicator& c) {
    std::vector<float> values(count);
    return c.AllReduceSum(values);
  };
}
std::function<Status(Communicator&)> Gather(size_t bytes) {
  return [bytes](Communicator& c) {
    const std::vector<std::byte> mine(bytes);
    std::vector<std::byte> all(c.ranks() * bytes);
    return c.AllGather(mine, all);
  };
}
std::function<Status(Communicator&)> Broadcast(size_t bytes, uint32_t root) {
  return [bytes, root](Communicator& c) {
    std::vector<std::byte> data(bytes);
    return c.Broadcast(data, root);
  };
}
std::function<Status(Communicator&)> SendTo(uint32_t rank) {
  return [rank](Communicator& c) { return c.Send(std::vector<std::byte>(4), rank); };
}
std::function<Status(Communicator&)> ReceiveFrom(uint32_t rank) {
  return [rank](Communicator& c) {
    std::vector<std::byte> data(4);
    return c.Receive(data, rank);
  };
}
Status Barrier(Communicator& c) { return c.Barrier(); }

// Calls of rank 0 of two that need the other one.
std::vector<NamedCall> CallsOfRank0() {
  return {{"all-reduce", Reduce(10)}, {"all-reduce of many", Reduce(100000)},
          {"all-gather", Gather(4)},  {"broadcast", Broadcast(4, /*root=*/1)},
          {"send", SendTo(1)},        {"receive", ReceiveFrom(1)},
          {"barrier", Barrier}};
}

TEST_P(EveryCommunicator, ARankThatDoesNotComeInTimeIsNamedAndTheGroupIsOver) {
  SKIP_WITHOUT_RANKS(2u);
  for (const NamedCall& each : CallsOfRank0()) {
    SCOPED_TRACE(each.name);
    const Group group = Make(2, kShort);
    const Status status = each.call(*group[0]);
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status;
    EXPECT_NE(Message(status).find("rank 1 did not take part"), std::string::npos) << status;
    EXPECT_EQ(group[0]->Barrier(), status);
    const Status late = group[1]->Barrier();
    EXPECT_FALSE(late.ok());
    EXPECT_NE(Message(late).find("rank 0"), std::string::npos) << late;
  }
}

TEST_P(EveryCommunicator, OfSeveralTheOneThatIsMissingIsNamed) {
  SKIP_WITHOUT_RANKS(4u);
  const Group group = Make(4, kShort);
  std::vector<std::byte> data(1);
  const Status status = group[0]->Receive(data, 2);
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_NE(Message(status).find("rank 2 did not take part in send"), std::string::npos) << status;
}

// All others are there. The first of them that gives up names who is missing; those behind it may hear of its
// end first, and name it.
TEST_P(EveryCommunicator, InACallOfAllTheOneThatIsMissingIsNamed) {
  constexpr uint32_t kRanks = 4, kMissing = 2;
  SKIP_WITHOUT_RANKS(kRanks);
  const NamedCall calls[] = {{"all-reduce", Reduce(10)},
                             {"all-reduce of many", Reduce(100000)},
                             {"all-gather", Gather(4)},
                             {"broadcast", Broadcast(4, /*root=*/kMissing)},
                             {"barrier", Barrier}};
  for (const NamedCall& each : calls) {
    SCOPED_TRACE(each.name);
    const Group group = Make(kRanks, std::chrono::milliseconds(500));
    size_t named = 0;
    std::mutex mutex;
    OnEachRank(kRanks, [&](uint32_t rank) {
      if (rank == kMissing) return;
      const Status status = each.call(*group[rank]);
      EXPECT_FALSE(status.ok());
      std::lock_guard lock(mutex);
      named += Message(status).find("rank 2 did not take part in ") != std::string::npos;
    });
    EXPECT_GT(named, 0u);
  }
}

TEST_P(EveryCommunicator, AbortEndsTheCallThatIsUnderWayAndThoseToCome) {
  SKIP_WITHOUT_RANKS(2u);
  for (const NamedCall& each : CallsOfRank0()) {
    SCOPED_TRACE(each.name);
    const Group group = Make(2, kLong);
    std::thread other([&] {
      std::vector<std::byte> data(1);
      EXPECT_TRUE(group[1]->Receive(data, 0).ok());  // rank 0 goes on to its next call
      group[0]->Abort(Cancelled("by the test"));
    });
    Status status = group[0]->Send(std::vector<std::byte>(1), 1);
    if (status.ok()) status = each.call(*group[0]);
    other.join();
    EXPECT_EQ(status, Cancelled("by the test"));
    EXPECT_EQ(group[0]->Barrier(), status);
    // The news may be behind what rank 0 sent in its call, which is another one than rank 1's.
    const Status of_rank1 = group[1]->Barrier();
    EXPECT_TRUE(of_rank1.code() == StatusCode::kUnavailable ||
                of_rank1.code() == StatusCode::kInvalidArgument)
        << of_rank1;
  }
}

TEST_P(EveryCommunicator, AbortBeforeACallEndsIt) {
  SKIP_WITHOUT_RANKS(2u);
  const Group group = Make(2, kLong);
  group[0]->Abort(Cancelled("first"));
  group[0]->Abort(Cancelled("second"));
  EXPECT_EQ(group[0]->Barrier(), Cancelled("first"));
}

TEST_P(EveryCommunicator, WhoWaitsForARankThatEndsIsFreed) {
  SKIP_WITHOUT_RANKS(3u);
  for (const bool aborts : {false, true}) {
    Group group = Make(3, kLong);
    std::latch all_passed(3);  // the first barrier is over for all
    OnEachRank(3, [&](uint32_t rank) {
      EXPECT_TRUE(group[rank]->Barrier().ok());
      all_passed.arrive_and_wait();
      if (rank != 2) {
        EXPECT_EQ(group[rank]->Barrier().code(), StatusCode::kUnavailable);
      } else if (aborts) {
        group[rank]->Abort(Cancelled("by the test"));
      } else {
        group[rank].reset();
      }
    });
  }
}

TEST_P(EveryCommunicator, ARankThatEndedIsFoundWithoutAWait) {
  SKIP_WITHOUT_RANKS(3u);
  Group group = Make(3, kLong);
  OnEachRank(3, [&](uint32_t rank) { EXPECT_EQ(group[rank]->Barrier(), Status()); });
  EXPECT_EQ(group[1]->FindEnded(), Status());
  group[2].reset();
  Status found;
  while (found.ok()) {  // until the news has come
    std::this_thread::yield();
    found = group[0]->FindEnded();
  }
  EXPECT_EQ(found.code(), StatusCode::kUnavailable);
  EXPECT_NE(Message(found).find("rank 2 has ended"), std::string::npos) << found;
  EXPECT_EQ(Message(found).find(".cc:"), std::string::npos) << "a place in somebody's source: " << found;
}

// Who leaves takes nothing from the others' last call.
TEST_P(EveryCommunicator, ARankMayEndOnceItsLastCallReturned) {
  SKIP_WITHOUT_RANKS(2u);
  Group group = Make(2, kLong);
  OnEachRank(2, [&](uint32_t rank) {
    for (const size_t count : {10, 100000}) {
      std::vector<float> values(count, 1);
      EXPECT_TRUE(group[rank]->AllReduceSum(values).ok());
      EXPECT_EQ(values, std::vector<float>(count, 2));
    }
    group[rank].reset();
  });
}

TEST_P(EveryCommunicator, RanksThatDisagreeHearOfIt) {
  SKIP_WITHOUT_RANKS(2u);
  const struct {
    const char* name;
    std::function<Status(Communicator&)> calls[2];
  } cases[] = {
      {"sizes of an all-gather", {Gather(8), Gather(12)}},
      {"sizes of a long all-gather", {Gather(100000), Gather(100001)}},
      {"a short and a long one", {Gather(8), Gather(100000)}},
      {"sizes of an all-reduce", {Reduce(10), Reduce(11)}},
      {"sizes of a long all-reduce", {Reduce(40000), Reduce(40001)}},
      {"sizes of a broadcast", {Broadcast(4, 0), Broadcast(8, 0)}},
      {"the call", {Barrier, Reduce(0)}},
  };
  for (const auto& each : cases) {
    SCOPED_TRACE(each.name);
    const Group group = Make(2, kLong);
    Status statuses[2];
    OnEachRank(2, [&](uint32_t rank) {
      statuses[rank] = each.calls[rank](*group[rank]);
      if (statuses[rank].ok()) statuses[rank] = group[rank]->Barrier();  // what a sender hears of late
    });
    size_t disagreements = 0;
    for (const Status& status : statuses) {
      EXPECT_FALSE(status.ok());
      if (status.code() != StatusCode::kInvalidArgument) continue;
      ++disagreements;
      EXPECT_NE(Message(status).find(", this one in "), std::string::npos) << status;
    }
    EXPECT_GT(disagreements, 0u) << statuses[0] << ", " << statuses[1];
  }
}

}  // namespace
}  // namespace terrace
