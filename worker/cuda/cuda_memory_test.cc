// What errors of the CUDA runtime become. Needs a toolkit, no device.
#include "worker/cuda/cuda_memory.h"

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

TEST(CudaStatus, HasPlaceCallAndBothNamesOfTheError) {
  const Status status = CudaStatus(cudaErrorIllegalAddress, "cudaEventSynchronize(done)");
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(Reason(status), "device_error");
  EXPECT_THAT(Message(status),
              MatchesRegex("worker/cuda/cuda_memory_test\\.cc:[0-9]+: cudaEventSynchronize: an illegal "
                           "memory access was encountered \\(cudaErrorIllegalAddress\\)"));
}

// That the device is lost with it, or may go on, is for who was at work on it to say: an error that sticks
// has no mark that tells it from others.
TEST(CudaStatus, EveryErrorIsOneOfTheDevice) {
  for (const cudaError_t error :
       {cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorLaunchFailure, cudaErrorECCUncorrectable,
        cudaErrorHardwareStackError, cudaErrorNoKernelImageForDevice, cudaErrorUnknown}) {
    const Status status = CudaStatus(error, "call()");
    EXPECT_EQ(status.code(), StatusCode::kInternal);
    EXPECT_EQ(Reason(status), "device_error");
    EXPECT_THAT(Message(status), HasSubstr(Concat("(", cudaGetErrorName(error), ")")));
    EXPECT_EQ(ExitCodeFor(status), kExitSoftware);
  }
}

struct Launch {
  const float* x = nullptr;
  cudaError_t error = cudaSuccess;
};
cudaError_t LaunchKernel(const Launch& launch, int) { return launch.error; }

Status AfterCall(cudaError_t error, bool& went_on) {
  RETURN_IF_CUDA_ERROR(LaunchKernel({.x = nullptr, .error = error}, 1));
  went_on = true;
  return {};
}

// Of a launch without its arguments, which are most of a screen.
TEST(CudaStatus, AnErrorReturnsFromWhereItWasMetAndSuccessGoesOn) {
  bool went_on = false;
  EXPECT_THAT(Message(AfterCall(cudaErrorInvalidValue, went_on)),
              MatchesRegex("worker/cuda/cuda_memory_test\\.cc:[0-9]+: LaunchKernel: invalid argument "
                           "\\(cudaErrorInvalidValue\\)"));
  EXPECT_FALSE(went_on);
  EXPECT_EQ(AfterCall(cudaSuccess, went_on), Status());
  EXPECT_TRUE(went_on);
}

TEST(CudaMallocStatus, WhatFindsNoRoomIsNoErrorOfTheDevice) {
  const Status status = CudaMallocStatus(cudaErrorMemoryAllocation, 4096, "weights");
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(status), "device_memory");
  EXPECT_THAT(Message(status), MatchesRegex("weights: 4096 bytes needed on the device, [0-9]+ free"));
  EXPECT_EQ(ExitCodeFor(status), kExitUnavailable);
}

TEST(CudaHostAllocStatus, WhatFindsNoRoomIsNoErrorOfTheDevice) {
  const Status status = CudaHostAllocStatus(cudaErrorMemoryAllocation, 4096, "KV swap memory");
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(Reason(status), "pinned_memory");
  EXPECT_EQ(Message(status), "KV swap memory: 4096 bytes of pinned memory cannot be had");
  EXPECT_EQ(ExitCodeFor(status), kExitUnavailable);
}

TEST(CudaMemoryStatus, OtherErrorsAreTheDevicesAndSayWhoAskedForWhat) {
  EXPECT_EQ(CudaMallocStatus(cudaSuccess, 4096, "weights"), Status());
  EXPECT_EQ(CudaHostAllocStatus(cudaSuccess, 4096, "weights"), Status());
  const struct {
    Status status;
    const char* call;
  } cases[] = {{CudaMallocStatus(cudaErrorNoDevice, 4096, "weights"), "cudaMalloc"},
               {CudaHostAllocStatus(cudaErrorNoDevice, 4096, "weights"), "cudaHostAlloc"}};
  for (const auto& [status, call] : cases) {
    EXPECT_EQ(Reason(status), "device_error");
    EXPECT_THAT(Message(status), MatchesRegex(Concat("worker/cuda/cuda_memory_test\\.cc:[0-9]+: ", call,
                                                     " of 4096 bytes for weights: .* "
                                                     "\\(cudaErrorNoDevice\\)")));
  }
}

TEST(CudaBuffer, OfNothingAsksNoDevice) {
  for (const auto& buffer : {CudaBuffer::Device(0, "nothing"), CudaBuffer::Pinned(0, "nothing")}) {
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(buffer->bytes(), 0u);
    EXPECT_EQ(buffer->data(), nullptr);
  }
}

}  // namespace
}  // namespace terrace
