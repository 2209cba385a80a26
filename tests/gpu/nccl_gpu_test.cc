// NCCL between the GPUs that are here, a rank for each, as one process: all rules of Communicator, and the
// calls on devices. Where NCCL cannot be loaded, or has too few GPUs for a group, a test says so and is
// skipped.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reduce/tree_sum_cuda.h"
#include "kernels/scalar_convert.h"
#include "tests/gpu/gpu_testing.h"
#include "worker/cuda/cuda_nccl_device.h"
#include "worker/parallel/communicator_conformance.h"
#include "worker/parallel/local_communicator.h"
#include "worker/parallel/nccl_communicator.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

#include <type_traits>

// What worker/parallel/nccl_api.h declares is what nccl.h does.
static_assert(sizeof(terrace::NcclUniqueId) == sizeof(ncclUniqueId));
static_assert(int{terrace::kNcclRemoteError} == int{ncclRemoteError});
static_assert(int{terrace::kNcclInProgress} == int{ncclInProgress});
static_assert(int{terrace::kNcclUint8} == int{ncclUint8});
static_assert(int{terrace::kNcclFloat16} == int{ncclFloat16});
static_assert(int{terrace::kNcclFloat32} == int{ncclFloat32});
static_assert(int{terrace::kNcclBFloat16} == int{ncclBfloat16});
static_assert(int{terrace::kNcclSum} == int{ncclSum});
static_assert(terrace::kOldestNccl == NCCL_VERSION(2, 17, 0));
static_assert(offsetof(terrace::NcclConfig, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(terrace::NcclConfig, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(offsetof(terrace::NcclConfig, max_ctas) == offsetof(ncclConfig_t, maxCTAs));
static_assert(offsetof(terrace::NcclConfig, net_name) == offsetof(ncclConfig_t, netName));
static_assert(sizeof(terrace::NcclConfig) <= sizeof(ncclConfig_t));
// As many parameters, of types that are converted to those of nccl.h by their names alone.
static_assert(std::is_same_v<decltype(&ncclCommAbort), ncclResult_t (*)(ncclComm*)>);
static_assert(std::is_same_v<decltype(&ncclCommInitRankConfig),
                             ncclResult_t (*)(ncclComm**, int, ncclUniqueId, int, ncclConfig_t*)>);
static_assert(std::is_same_v<decltype(&ncclCommGetAsyncError), ncclResult_t (*)(ncclComm*, ncclResult_t*)>);
static_assert(std::is_same_v<decltype(&ncclGetLastError), const char* (*)(ncclComm*)>);
static_assert(
    std::is_same_v<decltype(&ncclAllReduce), ncclResult_t (*)(const void*, void*, size_t, ncclDataType_t,
                                                              ncclRedOp_t, ncclComm*, CUstream_st*)>);
static_assert(
    std::is_same_v<decltype(&ncclAllGather),
                   ncclResult_t (*)(const void*, void*, size_t, ncclDataType_t, ncclComm*, CUstream_st*)>);
static_assert(
    std::is_same_v<decltype(&ncclBroadcast), ncclResult_t (*)(const void*, void*, size_t, ncclDataType_t, int,
                                                              ncclComm*, CUstream_st*)>);
static_assert(std::is_same_v<decltype(&ncclSend), ncclResult_t (*)(const void*, size_t, ncclDataType_t, int,
                                                                   ncclComm*, CUstream_st*)>);
static_assert(std::is_same_v<decltype(&ncclRecv),
                             ncclResult_t (*)(void*, size_t, ncclDataType_t, int, ncclComm*, CUstream_st*)>);
#endif

namespace terrace {
namespace {

constexpr size_t kMostBytes = 1 << 20;
constexpr DType kDTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

// 0 where there is no NCCL.
uint32_t MostRanks() {
  int devices = 0;
  if (!LoadNccl().ok() || cudaGetDeviceCount(&devices) != cudaSuccess) return 0;
  return static_cast<uint32_t>(devices);
}

#define SKIP_WITHOUT_NCCL(ranks)                                                              \
  if (const auto nccl = LoadNccl(); !nccl.ok()) GTEST_SKIP() << "not run: " << nccl.status(); \
  if ((ranks) > MostRanks())                                                                  \
  GTEST_SKIP() << "not run with " << (ranks) << " ranks: here are devices for " << MostRanks()

std::vector<std::unique_ptr<NcclCommunicator>> Connect(uint32_t ranks, Duration timeout) {
  Board board(ranks);
  auto controls = MakeLocalCommunicators(ranks, timeout);
  std::vector<std::unique_ptr<NcclCommunicator>> group(ranks);
  OnEachRank(ranks, [&](uint32_t rank) {
    auto device = OpenCudaNcclDevice(static_cast<int>(rank));
    CHECK(device.ok(), Message(device.status()));
    auto made = ConnectNccl({.nccl = LoadNccl().value(),
                             .control = std::move(controls[rank]),
                             .device = *std::move(device),
                             .connect_timeout = kLong,
                             .max_tree_sum_bytes = kMostBytes},
                            [&](const std::string& mine) { return board.Tell(rank, mine); });
    CHECK(made.ok(), Message(made.status()));
    group[rank] = *std::move(made);
  });
  return group;
}

Group MakeNcclGroup(uint32_t ranks, Duration timeout) {
  Group group;
  for (auto& each : Connect(ranks, timeout)) group.push_back(std::move(each));
  return group;
}

INSTANTIATE_TEST_SUITE_P(Nccl, EveryCommunicator,
                         testing::Values(Implementation{"nccl", MakeNcclGroup, MostRanks}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

// Elements as the device has them.
std::vector<std::byte> Encode(DType dtype, const std::vector<float>& values) {
  const size_t element = Info(dtype).block_bytes;
  std::vector<std::byte> out(values.size() * element);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = dtype == DType::kF16 ? F16FromFloat(values[i]) : BF16FromFloat(values[i]);
    const void* const from = dtype == DType::kF32 ? static_cast<const void*>(&values[i]) : &bits;
    std::memcpy(out.data() + i * element, from, element);
  }
  return out;
}
std::vector<float> Decode(DType dtype, const std::vector<std::byte>& bytes) {
  const size_t element = Info(dtype).block_bytes;
  std::vector<float> out(bytes.size() / element);
  for (size_t i = 0; i < out.size(); ++i) {
    const std::byte* const from = bytes.data() + i * element;
    out[i] = dtype == DType::kF32   ? LoadUnaligned<float>(from)
             : dtype == DType::kF16 ? FloatFromF16(LoadUnaligned<uint16_t>(from))
                                    : FloatFromBF16(LoadUnaligned<uint16_t>(from));
  }
  return out;
}

// AddTree over parts that are encoded, encoded.
std::vector<std::byte> TreeOf(DType dtype, const std::vector<std::vector<std::byte>>& encoded) {
  std::vector<std::vector<float>> parts;
  std::vector<float*> pointers;
  for (const auto& each : encoded) parts.push_back(Decode(dtype, each));
  for (auto& part : parts) pointers.push_back(part.data());
  AddTree(pointers, 0, parts[0].size());
  return Encode(dtype, parts[0]);
}

TEST(TreeSumGpu, IsAddTreeToTheBit) {
  for (const DType dtype : kDTypes) {
    for (uint32_t parts = 1; parts <= kMaxTreeParts; ++parts) {
      for (const size_t count : {size_t{1}, size_t{1003}, size_t{100'000}, size_t{8192} * 512 + 3}) {
        if (count > 200'000 && parts != 4) continue;
        SCOPED_TRACE(testing::Message() << parts << " parts of " << count << " " << Info(dtype).name);
        std::vector<std::vector<std::byte>> values;
        std::vector<DeviceArray<std::byte>> arrays;
        GpuTreeSumArgs args = {.part_count = parts, .count = count, .dtype = dtype};
        for (uint32_t part = 0; part < parts; ++part) {
          values.push_back(Encode(dtype, RandomValues(count, /*seed=*/count + part)));
          arrays.emplace_back(values.back());
          args.parts[part] = arrays.back().data();
        }
        args.out = arrays[parts / 2].data();
        CUDA_MUST(TreeSumCuda(args, {.follows = true}));
        EXPECT_EQ(arrays[parts / 2].Get(), TreeOf(dtype, values));
      }
    }
  }
}

TEST(TreeSumGpu, RefusesWhatItCannot) {
  EXPECT_EQ(TreeSumCuda({.part_count = 0, .count = 1}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(TreeSumCuda({.part_count = kMaxTreeParts + 1, .count = 1}, {}), cudaErrorInvalidValue);
  EXPECT_EQ(TreeSumCuda({.part_count = 2, .count = 1, .dtype = DType::kQ8_0}, {}), cudaErrorInvalidValue);
}

// A group of as many ranks as there are GPUs, from one on.
TEST(NcclRanks, SumsGathersAndBroadcastsOnDevices) {
  SKIP_WITHOUT_NCCL(1u);
  const uint32_t ranks = std::min(MostRanks(), kMaxTreeParts);
  std::printf("%u ranks\n", ranks);
  const auto group = Connect(ranks, kLong);
  for (const DType dtype : kDTypes) {
    for (const size_t count : {size_t{1}, size_t{1003}, size_t{16'384}, size_t{16'385}, size_t{200'003}}) {
      std::vector<std::vector<std::byte>> values;
      for (uint32_t i = 0; i < ranks; ++i) values.push_back(Encode(dtype, RandomValues(count, /*seed=*/i)));
      const std::vector<std::byte> tree = TreeOf(dtype, values);
      OnEachRank(ranks, [&](uint32_t rank) {
        CUDA_MUST(cudaSetDevice(static_cast<int>(rank)));
        NcclCommunicator& mine = *group[rank];
        CUstream_st* const stream = mine.stream();
        const DeviceArray<std::byte> ordered(values[rank]), fastest(values[rank]), own(values[rank]),
            shared(values[rank]);
        const DeviceArray<std::byte> all(ranks * own.size());
        CUDA_MUST(cudaDeviceSynchronize());
        EXPECT_EQ(mine.Meet(count), Status());
        EXPECT_EQ(mine.QueueSum({ordered.data(), count, dtype}, NcclCommunicator::SumOrder::kTree, stream),
                  Status());
        EXPECT_EQ(mine.QueueSum({fastest.data(), count, dtype}, NcclCommunicator::SumOrder::kFastest, stream),
                  Status());
        EXPECT_EQ(mine.QueueAllGather({own.data(), count, dtype}, all.data(), stream), Status());
        EXPECT_EQ(mine.QueueBroadcast({shared.data(), count, dtype}, /*root=*/ranks - 1, stream), Status());
        EXPECT_EQ(mine.Wait(stream), Status());
        EXPECT_EQ(ordered.Get(), tree) << count << " of " << Info(dtype).name << ", rank " << rank;
        const std::vector<float> sum = Decode(dtype, fastest.Get()), want = Decode(dtype, tree);
        const float step = dtype == DType::kF32 ? 0x1p-22f : dtype == DType::kF16 ? 0x1p-9f : 0x1p-6f;
        for (size_t i = 0; i < count; ++i) {
          ASSERT_NEAR(sum[i], want[i], 256 * ranks * ranks * step) << "in another order, rounded each time";
        }
        std::vector<std::byte> gathered;
        for (const auto& each : values) gathered.insert(gathered.end(), each.begin(), each.end());
        EXPECT_EQ(all.Get(), gathered);
        EXPECT_EQ(shared.Get(), values[ranks - 1]);
      });
    }
  }
}

TEST(NcclRanks, AbortEndsWhatWaitsForAnotherRank) {
  SKIP_WITHOUT_NCCL(2u);
  const auto group = Connect(2, kLong);
  OnEachRank(2, [&](uint32_t rank) {
    CUDA_MUST(cudaSetDevice(static_cast<int>(rank)));
    EXPECT_EQ(group[rank]->Meet(1), Status());
    if (rank == 1) return;  // and sends nothing
    const DeviceArray<float> values(1000);
    std::thread other([&] { group[0]->Abort(Cancelled("by the test")); });
    Status status = group[0]->QueueReceive({values.data(), 1000, DType::kF32}, 1, group[0]->stream());
    if (status.ok()) status = group[0]->Wait(group[0]->stream());
    EXPECT_EQ(status, Cancelled("by the test"));
    other.join();
    CUDA_MUST(cudaDeviceSynchronize());  // nothing of it is left on the device
  });
  EXPECT_EQ(group[1]->Meet(2).code(), StatusCode::kUnavailable);
}

TEST(NcclRanks, AbortOfOneRankCountsOnce) {
  SKIP_WITHOUT_NCCL(1u);
  const auto group = Connect(1, kLong);
  group[0]->Abort(Cancelled("by the test"));
  group[0]->Abort(Cancelled("again"));
  EXPECT_EQ(group[0]->Meet(1), Cancelled("by the test"));
}

}  // namespace
}  // namespace terrace
