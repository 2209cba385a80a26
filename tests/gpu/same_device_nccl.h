// NCCL for ranks that are threads of one process and share one device, which NCCL itself refuses: so what the
// ranks of a group compute is tested where there is one GPU. A call is carried out when it returns, together
// with the other ranks' calls; one that they do not make is waited for without end.
#pragma once

#include "worker/parallel/nccl_api.h"

namespace terrace {

// Sums are added in the order of the ranks, f32 alone.
NcclApi SameDeviceNccl();

}  // namespace terrace
