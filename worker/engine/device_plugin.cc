#include "worker/engine/device_plugin.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "worker/engine/device_abi.h"

namespace terrace {
namespace {

constexpr char kVariable[] = "TERRACE_CUDA_PLUGIN", kLibrary[] = "libterrace_cuda.so";
constexpr char kFactory[] = "terrace_device_backend";  // extern "C" const DeviceBackend* ()
constexpr char kAbi[] = "terrace_device_abi";

template <typename... Text>
Status NoDevice(const Text&... text) {
  return WithReason(Unavailable(text...), "no_device");
}

bool IsNamed() {
  const char* path = std::getenv(kVariable);
  return path != nullptr && *path != '\0';
}

std::string LibraryPath() {
  if (IsNamed()) return std::getenv(kVariable);
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? kLibrary : (self.parent_path() / kLibrary).string();
}

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

std::string LastError() {
  const char* text = dlerror();
  return text == nullptr ? "no reason given" : text;
}

}  // namespace

bool HasDevicePlugin() { return IsNamed() || Exists(LibraryPath()); }

StatusOr<const DeviceBackend*> LoadDevicePlugin() {
  const std::string path = LibraryPath();
  if (!Exists(path)) {
    return IsNamed() ? NoDevice(kVariable, ": there is no ", path)
                     : NoDevice("there is no ", path, ": CUDA is not built (docs/how-to/gpu.md), or ",
                                kVariable, " should say where the library is");
  }
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // again: the same one
  if (library == nullptr) return NoDevice("the CUDA library cannot be loaded: ", LastError());
  const auto factory = reinterpret_cast<const DeviceBackend* (*)()>(dlsym(library, kFactory));
  const auto abi = reinterpret_cast<const char* (*)()>(dlsym(library, kAbi));
  if (factory == nullptr || abi == nullptr) {
    return NoDevice(path, " is not Terrace's CUDA library: ", LastError());
  }
  if (abi() != DeviceAbi()) {
    return NoDevice(path, " is of version ", abi(), ", this program of ", DeviceAbi(), ": build it again");
  }
  const DeviceBackend* const backend = factory();
  if (const Status found = backend->probe(); !found.ok()) return NoDevice(Message(found));
  return backend;
}

}  // namespace terrace
