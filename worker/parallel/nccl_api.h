// The part of NCCL that Terrace calls, found at run time: the library is 200 MB and needed only where a model
// is split over GPUs, so that nothing is linked with it and no nccl.h is needed to build. What is declared
// here is NCCL's binary interface of 2.17, which later versions keep (ncclConfig_t carries its own size and
// version for that); tests/gpu/nccl_gpu_test.cc compares it with nccl.h where there is one.
#pragma once

#include <climits>
#include <cstddef>
#include <string>

#include "base/status.h"

struct CUstream_st;  // *: CUDA's cudaStream_t
struct ncclComm;     // *: NCCL's ncclComm_t

namespace terrace {

inline constexpr int kOldestNccl = 21700;  // 2.17.0

struct NcclUniqueId {
  char bytes[128];
};

enum NcclResult : int {
  kNcclSuccess = 0,
  kNcclUnhandledCudaError = 1,
  kNcclSystemError = 2,
  kNcclInternalError = 3,
  kNcclInvalidArgument = 4,
  kNcclInvalidUsage = 5,
  kNcclRemoteError = 6,
  kNcclInProgress = 7,
};
enum NcclType : int { kNcclUint8 = 1, kNcclFloat16 = 6, kNcclFloat32 = 7, kNcclBFloat16 = 9 };
enum NcclOp : int { kNcclSum = 0 };

// What is INT_MIN or null is up to NCCL.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef, version = kOldestNccl;
  int blocking = INT_MIN, cga_cluster_size = INT_MIN, min_ctas = INT_MIN, max_ctas = INT_MIN;
  const char* net_name = nullptr;
};

// nccl.h says what they do.
struct NcclApi {
  NcclResult (*GetVersion)(int* version) = nullptr;
  NcclResult (*GetUniqueId)(NcclUniqueId* id) = nullptr;
  NcclResult (*CommInitRankConfig)(ncclComm** comm, int ranks, NcclUniqueId id, int rank,
                                   NcclConfig* config) = nullptr;
  NcclResult (*CommFinalize)(ncclComm* comm) = nullptr;
  NcclResult (*CommDestroy)(ncclComm* comm) = nullptr;
  NcclResult (*CommAbort)(ncclComm* comm) = nullptr;
  NcclResult (*CommGetAsyncError)(ncclComm* comm, NcclResult* state) = nullptr;
  const char* (*GetErrorString)(NcclResult result) = nullptr;
  const char* (*GetLastError)(ncclComm* comm) = nullptr;
  NcclResult (*AllReduce)(const void* in, void* out, size_t count, NcclType type, NcclOp op, ncclComm* comm,
                          CUstream_st* stream) = nullptr;
  NcclResult (*AllGather)(const void* mine, void* all, size_t count, NcclType type, ncclComm* comm,
                          CUstream_st* stream) = nullptr;
  NcclResult (*Broadcast)(const void* in, void* out, size_t count, NcclType type, int root, ncclComm* comm,
                          CUstream_st* stream) = nullptr;
  NcclResult (*Send)(const void* data, size_t count, NcclType type, int peer, ncclComm* comm,
                     CUstream_st* stream) = nullptr;
  NcclResult (*Recv)(void* data, size_t count, NcclType type, int peer, ncclComm* comm,
                     CUstream_st* stream) = nullptr;
  NcclResult (*GroupStart)() = nullptr;
  NcclResult (*GroupEnd)() = nullptr;
};

// Loads the library, for good; its place is up to the dynamic loader (LD_LIBRARY_PATH). UNAVAILABLE in one
// line: it is not there, is something else, or is older than kOldestNccl. Any thread.
StatusOr<NcclApi> LoadNccl(const std::string& library = "libnccl.so.2");

// "2.28.9"
std::string NcclVersionText(int version);

}  // namespace terrace
