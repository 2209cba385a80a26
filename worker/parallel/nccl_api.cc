#include "worker/parallel/nccl_api.h"

#include <dlfcn.h>

#include <string_view>
#include <type_traits>

namespace terrace {
namespace {

std::string LastError() {
  const char* const text = dlerror();
  return text == nullptr ? "no reason given" : text;
}

// The first of the names that `library` has not, or "".
std::string_view FindAll(void* library, NcclApi& api) {
  std::string_view missing;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr && missing.empty()) missing = name;
  };
  find(api.GetVersion, "ncclGetVersion");
  find(api.GetUniqueId, "ncclGetUniqueId");
  find(api.CommInitRankConfig, "ncclCommInitRankConfig");
  find(api.CommFinalize, "ncclCommFinalize");
  find(api.CommDestroy, "ncclCommDestroy");
  find(api.CommAbort, "ncclCommAbort");
  find(api.CommGetAsyncError, "ncclCommGetAsyncError");
  find(api.GetErrorString, "ncclGetErrorString");
  find(api.GetLastError, "ncclGetLastError");
  find(api.AllReduce, "ncclAllReduce");
  find(api.AllGather, "ncclAllGather");
  find(api.Broadcast, "ncclBroadcast");
  find(api.Send, "ncclSend");
  find(api.Recv, "ncclRecv");
  find(api.GroupStart, "ncclGroupStart");
  find(api.GroupEnd, "ncclGroupEnd");
  return missing;
}

}  // namespace

StatusOr<NcclApi> LoadNccl(const std::string& library) {
  void* const loaded = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);  // again: the same one
  if (loaded == nullptr) {
    return Unavailable("NCCL, which ranks on GPUs need, cannot be loaded: ", LastError());
  }
  NcclApi api;
  if (const std::string_view missing = FindAll(loaded, api); !missing.empty()) {
    return Unavailable(library, " has no ", missing, ": it is not NCCL, or older than ",
                       NcclVersionText(kOldestNccl));
  }
  int version = 0;
  if (const NcclResult result = api.GetVersion(&version); result != kNcclSuccess) {
    return Unavailable(library, ": ncclGetVersion: ", api.GetErrorString(result));
  }
  if (version < kOldestNccl) {
    return Unavailable(library, " is NCCL ", NcclVersionText(version), ", ", NcclVersionText(kOldestNccl),
                       " is the oldest that will do");
  }
  return api;
}

std::string NcclVersionText(int version) {
  // Up to 2.8 the numbers had one digit less.
  const int major = version < 10000 ? version / 1000 : version / 10000;
  const int minor = (version < 10000 ? version % 1000 : version % 10000) / 100;
  return Concat(major, ".", minor, ".", version % 100);
}

}  // namespace terrace
