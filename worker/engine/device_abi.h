// Which build of the interface between a program and the library of its device this is.
#pragma once

#include <string>

namespace terrace {

// What the library exports as terrace_device_abi(), and the program compares with its own before it calls
// anything else: the version, and a digest of the headers that both are compiled with, which differs where a
// library of other sources was left beside a new program. Any thread.
std::string DeviceAbi();

}  // namespace terrace
