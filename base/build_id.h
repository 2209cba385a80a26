// Which build a program or a library is: the hash of its content that the linker writes into it (GNU
// build-id). Two builds of one version may compute different bits. Any thread.
#pragma once

#include <string>

namespace terrace {

// Of this program, in hexadecimal; "" where the linker wrote none.
std::string OwnBuildId();
// Of the loaded program or library that has `address` in it; "" where none has, or the linker wrote none.
std::string BuildIdAt(const void* address);

}  // namespace terrace
