#include "worker/engine/device_abi.h"

#include "base/status.h"
#include "base/version.h"
#include "worker/engine/device_abi_digest.h"

namespace terrace {

std::string DeviceAbi() { return Concat(kVersion, " ", kDeviceAbiDigest); }

}  // namespace terrace
