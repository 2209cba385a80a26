// NCCL and devices for tests: ranks are threads of one process, the memory of devices is the host's, and what
// is queued on a stream happens when someone asks whether the stream is idle, no earlier. As NCCL without
// blocking does, a call is only accepted, and the next one before it is carried out is an error; ranks that
// wait for one that was aborted wait for ever; sizes that differ end the process.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "worker/parallel/nccl_api.h"
#include "worker/parallel/nccl_device.h"

namespace terrace {

NcclApi FakeNccl();
std::unique_ptr<NcclDevice> MakeFakeNcclDevice();

// What goes wrong, for all ranks. A test sets it before the ranks get there.
struct FakeNcclFaults {
  std::atomic<NcclResult> connect_result = kNcclSuccess;  // of the call
  std::atomic<bool> never_connects = false;
  std::atomic<bool> never_finishes = false;            // what is queued
  std::atomic<NcclResult> async_error = kNcclSuccess;  // reported once a rank is connected
};
FakeNcclFaults& NcclFaults();

// Communicators that were neither destroyed nor aborted. Either of one that is not there ends the process.
size_t LiveFakeNcclComms();
// Collectives, sends and receives that NCCL was called for, by all ranks since the process began.
size_t FakeNcclCalls();

}  // namespace terrace
