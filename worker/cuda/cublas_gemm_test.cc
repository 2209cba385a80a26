// What errors of cuBLASLt become. Needs a toolkit, no device.
#include "worker/cuda/cublas_gemm.h"

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::MatchesRegex;

// A step that meets it ends with it: that is all that tells of a worker's end.
TEST(CublasStatus, EveryErrorHasPlaceAndCall) {
  const struct {
    cublasStatus_t error;
    StatusCode code;
    const char *reason, *name;
  } cases[] = {
      {CUBLAS_STATUS_NOT_SUPPORTED, StatusCode::kUnimplemented, "unsupported_device",
       "CUBLAS_STATUS_NOT_SUPPORTED"},
      {CUBLAS_STATUS_EXECUTION_FAILED, StatusCode::kInternal, "device_error",
       "CUBLAS_STATUS_EXECUTION_FAILED"},
      {CUBLAS_STATUS_ALLOC_FAILED, StatusCode::kInternal, "device_error", "CUBLAS_STATUS_ALLOC_FAILED"}};
  for (const auto& c : cases) {
    const Status status = CublasStatus(c.error, "cublasLtMatmul(handle_, {.x = 1})");
    EXPECT_EQ(status.code(), c.code) << c.name;
    EXPECT_EQ(Reason(status), c.reason) << c.name;
    EXPECT_THAT(Message(status),
                MatchesRegex(Concat("worker/cuda/cublas_gemm_test\\.cc:[0-9]+: cublasLtMatmul: .* \\(",
                                    c.name, "\\)")));
    EXPECT_EQ(ExitCodeFor(status), kExitSoftware) << c.name;
  }
}

}  // namespace
}  // namespace terrace
