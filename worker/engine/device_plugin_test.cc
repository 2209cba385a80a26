#include "worker/engine/device_plugin.h"

#include <cstdlib>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Status LoadNamed(const std::string& path) {
  setenv("TERRACE_CUDA_PLUGIN", path.c_str(), /*overwrite=*/1);
  const Status status = LoadDevicePlugin().status();
  unsetenv("TERRACE_CUDA_PLUGIN");
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(Reason(status), "no_device");
  EXPECT_THAT(Message(status), Not(HasSubstr("\n")));
  return status;
}

TEST(LoadDevicePlugin, SaysWhichNamedFileIsMissing) {
  EXPECT_EQ(Message(LoadNamed("/nowhere/libterrace_cuda.so")),
            "TERRACE_CUDA_PLUGIN: there is no /nowhere/libterrace_cuda.so");
}

TEST(LoadDevicePlugin, SaysWhyAFileIsNoLibrary) {
  const std::string path = ::testing::TempDir() + "libterrace_cuda.so";
  std::ofstream(path) << "not a library";
  EXPECT_THAT(Message(LoadNamed(path)), HasSubstr("the CUDA library cannot be loaded: " + path));
}

TEST(LoadDevicePlugin, ALibraryOfSomethingElseIsRefused) {
  const std::string libm = "/lib/x86_64-linux-gnu/libm.so.6";
  if (!std::ifstream(libm)) GTEST_SKIP() << "no " << libm;
  EXPECT_THAT(Message(LoadNamed(libm)), HasSubstr("is not Terrace's CUDA library"));
}

TEST(LoadDevicePlugin, WithoutALibraryItSaysHowOneComesToBe) {
  unsetenv("TERRACE_CUDA_PLUGIN");  // tests have none beside them
  EXPECT_FALSE(HasDevicePlugin());
  EXPECT_THAT(Message(LoadDevicePlugin().status()), HasSubstr("CUDA is not built"));
  setenv("TERRACE_CUDA_PLUGIN", "/nowhere", /*overwrite=*/1);
  EXPECT_TRUE(HasDevicePlugin()) << "one is expected";
  unsetenv("TERRACE_CUDA_PLUGIN");
}

}  // namespace
}  // namespace terrace
