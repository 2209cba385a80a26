// What errors of the CUDA runtime become. Needs a toolkit, no device.
#include "worker/cuda/cuda_memory.h"

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

TEST(CudaStatus, HasPlaceCallAndBothNamesOfTheError) {
  const Status status = CudaStatus(cudaErrorIllegalAddress, "cudaEventSynchronize(done)", "x.cc", 12);
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(Reason(status), "device_error");
  EXPECT_EQ(Message(status),
            "x.cc:12: cudaEventSynchronize(done): an illegal memory access was encountered "
            "(cudaErrorIllegalAddress)");
}

// That the device is lost with it, or may go on, is for who was at work on it to say: an error that sticks
// has no mark that tells it from others.
TEST(CudaStatus, EveryErrorIsOneOfTheDevice) {
  for (const cudaError_t error :
       {cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorLaunchFailure, cudaErrorECCUncorrectable,
        cudaErrorHardwareStackError, cudaErrorNoKernelImageForDevice, cudaErrorUnknown}) {
    const Status status = CudaStatus(error, "call()", "x.cc", 1);
    EXPECT_EQ(status.code(), StatusCode::kInternal);
    EXPECT_EQ(Reason(status), "device_error");
    EXPECT_THAT(Message(status), HasSubstr(Concat("(", cudaGetErrorName(error), ")")));
    EXPECT_EQ(ExitCodeFor(status), kExitSoftware);
  }
}

Status AfterCall(cudaError_t error, bool& went_on) {
  RETURN_IF_CUDA_ERROR(error);
  went_on = true;
  return {};
}

TEST(CudaStatus, AnErrorReturnsFromWhereItWasMetAndSuccessGoesOn) {
  bool went_on = false;
  EXPECT_THAT(Message(AfterCall(cudaErrorInvalidValue, went_on)),
              MatchesRegex("worker/cuda/cuda_memory_test\\.cc:[0-9]+: error: invalid argument "
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

TEST(CudaMallocStatus, OtherErrorsAreTheDevices) {
  EXPECT_EQ(CudaMallocStatus(cudaSuccess, 4096, "weights"), Status());
  const Status status = CudaMallocStatus(cudaErrorNoDevice, 4096, "weights");
  EXPECT_EQ(Reason(status), "device_error");
  EXPECT_THAT(Message(status), AllOf(HasSubstr("worker/cuda/cuda_memory.cc:"), HasSubstr(": cudaMalloc: "),
                                     HasSubstr("(cudaErrorNoDevice)")));
}

TEST(CudaBuffer, OfNothingAsksNoDevice) {
  for (const auto& make : {&CudaBuffer::Device, &CudaBuffer::Pinned}) {
    const auto buffer = make(0, "nothing");
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(buffer->bytes(), 0u);
    EXPECT_EQ(buffer->data(), nullptr);
  }
}

}  // namespace
}  // namespace terrace
