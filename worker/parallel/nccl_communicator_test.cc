// What an NcclCommunicator adds to a Communicator: calls on the memory of devices, and what becomes of a rank
// whose NCCL or device fails. Ranks are threads over fake_nccl.h; one test takes NCCL itself, which comes to
// an end with an error where there is no GPU. What needs GPUs is in tests/gpu/nccl_gpu_test.cc.
#include "worker/parallel/nccl_communicator.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/scalar_convert.h"
#include "worker/parallel/fake_nccl.h"
#include "worker/parallel/local_communicator.h"
#include "worker/parallel/on_each_rank.h"
#include "worker/parallel/tree_sum.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using SumOrder = NcclCommunicator::SumOrder;

constexpr Duration kLong = std::chrono::seconds(120);  // no rank misses it
constexpr Duration kShort = std::chrono::milliseconds(1);
constexpr size_t kMostBytes = 300'000;
constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

using NcclGroup = std::vector<std::unique_ptr<NcclCommunicator>>;

// What `ranks` fake ranks of one process would tell each other, without anybody to wait for.
Rendezvous Told(uint32_t ranks, const NcclUniqueId& id) {
  return [ranks, id](const std::string& mine) -> StatusOr<std::vector<std::string>> {
    const std::string version = mine.substr(0, sizeof(int));
    std::vector<std::string> all(ranks, version);
    all[0].append(id.bytes, sizeof(id.bytes));
    return all;
  };
}

class Nccl : public testing::Test {
 protected:
  Nccl() { CHECK(FakeNccl().GetUniqueId(&id_) == kNcclSuccess, "an id of the test"); }
  void TearDown() override {
    NcclFaults().connect_result = NcclFaults().async_error = kNcclSuccess;
    NcclFaults().never_connects = NcclFaults().never_finishes = false;
    EXPECT_EQ(LiveFakeNcclComms(), 0u) << "a communicator of NCCL's was not given back";
  }

  StatusOr<std::unique_ptr<NcclCommunicator>> Connect(std::unique_ptr<Communicator> control,
                                                      Duration connect_timeout = kLong) {
    const uint32_t ranks = control->ranks();
    return ConnectNccl({.nccl = FakeNccl(),
                        .control = std::move(control),
                        .device = MakeFakeNcclDevice(),
                        .connect_timeout = connect_timeout,
                        .max_tree_sum_bytes = kMostBytes},
                       Told(ranks, id_));
  }

  NcclGroup Make(uint32_t ranks, Duration timeout = kLong) {
    CHECK(FakeNccl().GetUniqueId(&id_) == kNcclSuccess, "an id of the test");
    auto controls = MakeLocalCommunicators(ranks, timeout);
    NcclGroup group(ranks);
    OnEachRank(ranks, [&](uint32_t rank) {
      auto made = Connect(std::move(controls[rank]));
      CHECK(made.ok(), Message(made.status()));
      group[rank] = *std::move(made);
    });
    return group;
  }

  NcclUniqueId id_;
};

// An array on a device, which is memory of the host here, of random values of many magnitudes.
class Values {
 public:
  Values(DType dtype, size_t count, uint64_t seed) : dtype_(dtype), count_(count) {
    bytes_.resize(count * Info(dtype).block_bytes);
    for (size_t i = 0; i < count; ++i) {
      const double magnitude = std::exp2(8 * RandomUniform(seed, i, 0));
      Set(i, static_cast<float>(magnitude * (RandomUniform(seed, i, 1) - 0.5)));
    }
  }

  float At(size_t i) const {
    const std::byte* const from = bytes_.data() + i * Info(dtype_).block_bytes;
    if (dtype_ == DType::kF32) return LoadUnaligned<float>(from);
    const auto bits = LoadUnaligned<uint16_t>(from);
    return dtype_ == DType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
  }
  std::vector<float> Floats() const {
    std::vector<float> out(count_);
    for (size_t i = 0; i < count_; ++i) out[i] = At(i);
    return out;
  }
  // Rounded.
  void Set(size_t i, float value) {
    std::byte* const to = bytes_.data() + i * Info(dtype_).block_bytes;
    if (dtype_ == DType::kF32) {
      std::memcpy(to, &value, sizeof(value));
    } else {
      const uint16_t bits = dtype_ == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
      std::memcpy(to, &bits, sizeof(bits));
    }
  }
  DeviceValues device() { return {.data = bytes_.data(), .count = count_, .dtype = dtype_}; }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  DType dtype_;
  size_t count_;
  std::vector<std::byte> bytes_;
};

// AddTree over all ranks' values, rounded.
Values TreeOf(const std::vector<Values>& ranks) {
  std::vector<std::vector<float>> parts;
  std::vector<float*> pointers;
  for (const Values& each : ranks) parts.push_back(each.Floats());
  for (auto& part : parts) pointers.push_back(part.data());
  AddTree(pointers, 0, parts[0].size());
  Values sum = ranks[0];
  for (size_t i = 0; i < parts[0].size(); ++i) sum.Set(i, parts[0][i]);
  return sum;
}

std::vector<Values> ValuesOfRanks(uint32_t ranks, DType dtype, size_t count) {
  std::vector<Values> all;
  for (uint32_t rank = 0; rank < ranks; ++rank) all.emplace_back(dtype, count, /*seed=*/count + rank);
  return all;
}

// Each rank's values become the sum.
void SumOnDevices(const NcclGroup& group, SumOrder order, std::vector<Values>& values) {
  OnEachRank(group.size(), [&](uint32_t rank) {
    CUstream_st* const stream = group[rank]->stream();
    EXPECT_EQ(group[rank]->Meet(values.size()), Status());
    EXPECT_EQ(group[rank]->QueueSum(values[rank].device(), order, stream), Status());
    EXPECT_EQ(group[rank]->Wait(stream), Status());
  });
}

// Around the bytes at which a sum is sent in shares, and around the elements of a share.
constexpr size_t kCounts[] = {0, 1, 7, 8, 1000, 16384, 16385, 32768, 32769, 70001};

TEST_F(Nccl, TreesOverDevicesAreAddTreeOnEveryRankToTheBit) {
  for (const uint32_t ranks : {1u, 2u, 3u, 4u, 8u}) {
    const NcclGroup group = Make(ranks);
    for (const DType dtype : kDTypes) {
      for (const size_t count : kCounts) {
        std::vector<Values> values = ValuesOfRanks(ranks, dtype, count);
        const Values want = TreeOf(values);
        SumOnDevices(group, SumOrder::kTree, values);
        for (const Values& each : values) {
          EXPECT_EQ(each.bytes(), want.bytes()) << count << " of " << Info(dtype).name << ", ranks " << ranks;
        }
      }
    }
  }
}

TEST_F(Nccl, TheFastestSumIsNcclsOwn) {
  const size_t count = 1000;
  std::vector<Values> values = ValuesOfRanks(/*ranks=*/3, DType::kF32, count);
  const Values tree = TreeOf(values);
  SumOnDevices(Make(3), SumOrder::kFastest, values);
  EXPECT_EQ(values[1].bytes(), values[0].bytes());
  EXPECT_EQ(values[2].bytes(), values[0].bytes());
  EXPECT_NE(values[0].bytes(), tree.bytes()) << "the test's NCCL adds in another order";
  for (size_t i = 0; i < count; ++i) EXPECT_NEAR(values[0].At(i), tree.At(i), 3 * 256 * 0x1p-23);
}

TEST_F(Nccl, GatherBroadcastSendAndReceiveOnDevices) {
  const uint32_t ranks = 3;
  const NcclGroup group = Make(ranks);
  OnEachRank(ranks, [&](uint32_t rank) {
    NcclCommunicator& mine = *group[rank];
    CUstream_st* const stream = mine.stream();
    for (const DType dtype : kDTypes) {
      for (const size_t count : {size_t{0}, size_t{1}, size_t{1001}}) {
        Values own(dtype, count, /*seed=*/rank), all(dtype, ranks * count, /*seed=*/9);
        Values shared(dtype, count, /*seed=*/rank), passed(dtype, count, /*seed=*/rank);
        EXPECT_EQ(mine.Meet(count), Status());
        EXPECT_EQ(mine.QueueAllGather(own.device(), all.device().data, stream), Status());
        EXPECT_EQ(mine.QueueBroadcast(shared.device(), /*root=*/1, stream), Status());
        if (rank == 0) {
          EXPECT_EQ(mine.QueueSend(passed.device(), 2, stream), Status());
        }
        if (rank == 2) {
          EXPECT_EQ(mine.QueueReceive(passed.device(), 0, stream), Status());
        }
        EXPECT_EQ(mine.Wait(stream), Status());
        std::vector<std::byte> gathered;
        for (uint32_t i = 0; i < ranks; ++i) {
          const Values theirs(dtype, count, /*seed=*/i);
          gathered.insert(gathered.end(), theirs.bytes().begin(), theirs.bytes().end());
        }
        EXPECT_EQ(all.bytes(), gathered);
        EXPECT_EQ(shared.bytes(), Values(dtype, count, /*seed=*/1).bytes());
        EXPECT_EQ(passed.bytes(), Values(dtype, count, /*seed=*/rank == 2 ? 0 : rank).bytes());
      }
    }
  });
}

TEST_F(Nccl, RanksThatAreConnectedMeetOverTheirControlGroup) {
  for (const uint32_t ranks : {1u, 2u, 4u}) {
    auto controls = MakeLocalCommunicators(ranks, kLong);
    NcclGroup group(ranks);
    OnEachRank(ranks, [&](uint32_t rank) {
      auto made = ConnectNccl(
          {.nccl = FakeNccl(), .control = std::move(controls[rank]), .device = MakeFakeNcclDevice()});
      ASSERT_TRUE(made.ok()) << made.status();
      group[rank] = *std::move(made);
      std::vector<float> values = {static_cast<float>(rank), 1};
      EXPECT_EQ(group[rank]->AllReduceSum(values), Status());
      EXPECT_EQ(values[0], static_cast<float>(ranks * (ranks - 1) / 2));
      EXPECT_EQ(values[1], static_cast<float>(ranks));
    });
  }
}

TEST_F(Nccl, AStepGoesOnBehindADrain) {
  const NcclGroup group = Make(2);
  OnEachRank(2, [&](uint32_t rank) {
    NcclCommunicator& mine = *group[rank];
    Values values(DType::kF32, 10, /*seed=*/rank);
    values.Set(3, 1);
    EXPECT_EQ(mine.Meet(1), Status());
    for (const float sum : {2.0f, 4.0f, 8.0f}) {
      EXPECT_EQ(mine.QueueSum(values.device(), SumOrder::kFastest, mine.stream()), Status());
      EXPECT_EQ(mine.Drain(mine.stream()), Status());
      EXPECT_EQ(values.At(3), sum) << "it is done";
    }
    EXPECT_EQ(mine.Wait(mine.stream()), Status());
  });
}

// Before NCCL is called: it would wait for ever, or write past the end.
TEST_F(Nccl, SizesThatDifferNeverReachNccl) {
  const NcclGroup group = Make(2);
  const size_t calls = FakeNcclCalls();
  OnEachRank(2, [&](uint32_t rank) {
    std::vector<float> values(rank == 0 ? 10 : 20);
    const Status status = group[rank]->AllReduceSum(values);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(Message(status), HasSubstr(rank == 0 ? "rank 1 is in all-reduce of 80 bytes, this one in "
                                                       "all-reduce of 40"
                                                     : "rank 0 is in all-reduce of 40 bytes"));
  });
  EXPECT_EQ(FakeNcclCalls(), calls);
}

TEST_F(Nccl, WhoSendsToOneThatSendsHearsOfIt) {
  const NcclGroup group = Make(2);
  const size_t calls = FakeNcclCalls();
  OnEachRank(2, [&](uint32_t rank) {
    const Status status = group[rank]->Send(std::vector<std::byte>(4), 1 - rank);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  });
  EXPECT_EQ(FakeNcclCalls(), calls);
}

TEST_F(Nccl, AMeetingNamesWhoIsMissing) {
  NcclGroup group = Make(3, kShort);
  const Status status = group[0]->Meet(1);
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(status), HasSubstr("rank 1 did not take part in barrier within 0.001 s"));
  Values values(DType::kF32, 10, /*seed=*/1);
  EXPECT_EQ(group[0]->QueueSum(values.device(), SumOrder::kTree, group[0]->stream()), status)
      << "it has ended";
  EXPECT_EQ(group[0]->Barrier(), status);
  EXPECT_THAT(Message(group[1]->Meet(1)), HasSubstr("rank 0 has ended"));
}

TEST_F(Nccl, RanksOfDifferentStepsHearOfIt) {
  const NcclGroup group = Make(2);
  OnEachRank(2, [&](uint32_t rank) {
    const Status status = group[rank]->Meet(10 + rank);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(status), HasSubstr(rank == 0 ? "rank 1 came for step 11, this one for 10"
                                                     : "rank 0 came for step 10, this one for 11"));
  });
}

TEST_F(Nccl, ADeviceThatHangsIsADeadline) {
  const NcclGroup group = Make(1, kShort);
  NcclFaults().never_finishes = true;
  Values values(DType::kF32, 10, /*seed=*/1);
  EXPECT_EQ(group[0]->Meet(1), Status());
  Status status = group[0]->QueueSum(values.device(), SumOrder::kFastest, group[0]->stream());
  if (status.ok()) status = group[0]->Wait(group[0]->stream());
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("nccl_communicator.cc:"),
                    HasSubstr(" of rank 0: not done within 0.001 s, though every rank had come")));
  EXPECT_EQ(group[0]->Wait(group[0]->stream()), status);
}

TEST_F(Nccl, AnAsynchronousErrorEndsTheWaitAndTheOthersHearOfIt) {
  for (const NcclResult error : {kNcclRemoteError, kNcclSystemError}) {
    const NcclGroup group = Make(2);
    OnEachRank(2, [&](uint32_t rank) { EXPECT_EQ(group[rank]->Meet(1), Status()); });
    NcclFaults().async_error = error;
    const Status status = group[0]->Wait(group[0]->stream());
    NcclFaults().async_error = kNcclSuccess;
    const bool is_remote = error == kNcclRemoteError;
    EXPECT_EQ(status.code(), is_remote ? StatusCode::kUnavailable : StatusCode::kInternal);
    EXPECT_EQ(Reason(status), "device_error");
    EXPECT_THAT(Message(status), AllOf(HasSubstr("nccl_communicator.cc:"), HasSubstr("a stream of rank 0: "),
                                       HasSubstr(is_remote ? "a peer went away" : "a fault of the test"),
                                       HasSubstr("its last error"), Not(HasSubstr("\n"))));
    EXPECT_EQ(group[0]->Barrier(), status);
    const Status other = group[1]->Meet(2);
    EXPECT_EQ(other.code(), StatusCode::kUnavailable);
    EXPECT_THAT(Message(other), HasSubstr("rank 0 has ended"));
  }
}

TEST_F(Nccl, ARankThatEndedBehindTheMeetingIsNamed) {
  NcclGroup group = Make(3);
  OnEachRank(3, [&](uint32_t rank) { EXPECT_EQ(group[rank]->Meet(1), Status()); });
  group[2].reset();
  NcclFaults().async_error = kNcclSystemError;  // what NCCL makes of it
  const Status status = group[0]->Wait(group[0]->stream());
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_THAT(Message(status), AllOf(HasSubstr("rank 2 has ended"), HasSubstr("a fault of the test")));
}

// The others' time is over, one's earlier than another's: none of them names the one that reported first.
TEST_F(Nccl, ARankThatHangsBehindTheMeetingIsNamedByAllOthers) {
  constexpr uint32_t kRanks = 4, kHangs = 2;
  const NcclGroup group = Make(kRanks, /*timeout=*/std::chrono::seconds(2));
  NcclFaults().never_finishes = true;
  OnEachRank(kRanks, [&](uint32_t rank) {
    EXPECT_EQ(group[rank]->Meet(1), Status());
    if (rank == kHangs) return;
    Values values(DType::kF32, 10, /*seed=*/rank);
    Status status = group[rank]->QueueSum(values.device(), SumOrder::kFastest, group[rank]->stream());
    if (status.ok()) status = group[rank]->Wait(group[rank]->stream());
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(Message(status), AllOf(HasSubstr("rank 2 did not take part"), Not(HasSubstr("has ended"))));
  });
}

TEST_F(Nccl, AbortEndsAWaitForADeviceAndCountsOnce) {
  const NcclGroup group = Make(1);
  NcclFaults().never_finishes = true;
  Values values(DType::kF32, 10, /*seed=*/1);
  EXPECT_EQ(group[0]->Meet(1), Status());
  EXPECT_EQ(group[0]->QueueSum(values.device(), SumOrder::kFastest, group[0]->stream()), Status());
  std::thread other([&] {
    group[0]->Abort(Cancelled("by the test"));
    group[0]->Abort(Cancelled("again"));
  });
  EXPECT_EQ(group[0]->Wait(group[0]->stream()), Cancelled("by the test"));
  other.join();
  group[0]->Abort(Cancelled("once more"));
  EXPECT_EQ(group[0]->Meet(2), Cancelled("by the test"));
  EXPECT_EQ(LiveFakeNcclComms(), 0u);
}

TEST_F(Nccl, AConnectionThatNeverComesIsADeadline) {
  NcclFaults().never_connects = true;
  auto controls = MakeLocalCommunicators(2, kLong);
  const Status status = Connect(std::move(controls[0]), kShort).status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(status), HasSubstr("ncclCommInitRankConfig of rank 0: not done within 0.001 s"));
  EXPECT_EQ(LiveFakeNcclComms(), 0u);
  EXPECT_THAT(Message(controls[1]->Barrier()), HasSubstr("rank 0 has ended")) << "nobody waits for it";
}

TEST_F(Nccl, AConnectionThatFailsSaysWhy) {
  for (const bool at_once : {false, true}) {
    (at_once ? NcclFaults().connect_result : NcclFaults().async_error) = kNcclSystemError;
    const Status status = Connect(std::move(MakeLocalCommunicators(1, kLong)[0])).status();
    EXPECT_EQ(status.code(), StatusCode::kInternal);
    EXPECT_THAT(Message(status), AllOf(HasSubstr("nccl_communicator.cc:"),
                                       HasSubstr("ncclCommInitRankConfig of rank 0: a fault of the test")));
  }
}

TEST_F(Nccl, WhatTheRendezvousBringsIsCheckedBeforeNcclIsCalled) {
  const struct {
    const char* name;
    Rendezvous rendezvous;
    Status want;
  } cases[] = {
      {"its own error", [](const std::string&) { return NotFound("no leader"); }, NotFound("no leader")},
      {"no id",
       [](const std::string& mine) {
         return std::vector<std::string>{mine.substr(0, 4), mine};
       },
       Unavailable("rank 0 told 4 bytes where 132 were expected")},
      {"another version",
       [](const std::string& mine) {
         const int older = 22703;
         std::string theirs(reinterpret_cast<const char*>(&older), sizeof(older));
         return std::vector<std::string>{mine, theirs};
       },
       InvalidArgument("rank 1 has NCCL 2.27.3, this one 2.28.9")},
  };
  for (const auto& each : cases) {
    auto controls = MakeLocalCommunicators(2, kLong);
    const Status status =
        ConnectNccl({.nccl = FakeNccl(), .control = std::move(controls[0]), .device = MakeFakeNcclDevice()},
                    each.rendezvous)
            .status();
    EXPECT_EQ(status, each.want) << each.name;
  }
}

TEST_F(Nccl, TreesHaveLimits) {
  const NcclGroup group = Make(1);
  Values values(DType::kBF16, kMostBytes / 2 + 1, /*seed=*/1);
  EXPECT_EQ(group[0]->Meet(1), Status());
  const Status status = group[0]->QueueSum(values.device(), SumOrder::kTree, group[0]->stream());
  EXPECT_EQ(status, InvalidArgument("a tree over 150001 values of 2 bytes, limit 300000 bytes"));
  auto controls = MakeLocalCommunicators(17, kLong);
  EXPECT_EQ(Connect(std::move(controls[16])).status(),
            InvalidArgument("a tree over the devices of 17 ranks, limit 16"));
}

Status LoadedFrom(const std::string& library) {
  const Status status = LoadNccl(library).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), Not(HasSubstr("\n")));
  return status;
}

TEST(LoadNccl, SaysInOneLineWhatIsMissing) {
  EXPECT_EQ(
      Message(LoadedFrom("/nowhere/libnccl.so.2")),
      "NCCL, which ranks on GPUs need, cannot be loaded: /nowhere/libnccl.so.2: cannot open shared object "
      "file: No such file or directory");
  EXPECT_EQ(Message(LoadedFrom("libm.so.6")),
            "libm.so.6 has no ncclGetVersion: it is not NCCL, or older than 2.17.0");
}

// The rendezvous of a group of one.
StatusOr<std::vector<std::string>> Alone(const std::string& mine) { return std::vector<std::string>{mine}; }

// NCCL itself, as far as it gets: with a driver and a GPU to a connection of one rank, else to an error that
// says what is missing, within the timeout. Without NCCL on this machine it says so.
TEST(NcclItself, ConnectsOrSaysWhyNot) {
  StatusOr<NcclApi> nccl = LoadNccl();
  if (!nccl.ok()) nccl = LoadNccl("/usr/local/cuda/lib64/libnccl.so.2");
  if (!nccl.ok()) GTEST_SKIP() << "not run: " << nccl.status();
  const auto made = ConnectNccl({.nccl = *nccl,
                                 .control = std::move(MakeLocalCommunicators(1, kLong)[0]),
                                 .device = MakeFakeNcclDevice(),
                                 .connect_timeout = kLong},
                                Alone);
  if (made.ok()) {
    std::printf("a rank of one GPU is connected\n");
    (*made)->Abort(Cancelled("by the test"));
    (*made)->Abort(Cancelled("again"));
    EXPECT_EQ((*made)->Meet(1), Cancelled("by the test"));
    return;
  }
  std::printf("no GPU: %s\n", Message(made.status()).c_str());
  EXPECT_EQ(made.status().code(), StatusCode::kInternal);
  EXPECT_EQ(Reason(made.status()), "device_error");
  EXPECT_THAT(Message(made.status()), AllOf(HasSubstr("nccl_communicator.cc:"),
                                            HasSubstr("ncclCommInitRankConfig"), Not(HasSubstr("\n"))));
}

}  // namespace
}  // namespace terrace
