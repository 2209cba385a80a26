// The version every binary reports. One number for the whole product; CHANGELOG.md tells what is in it.
#pragma once

namespace terrace {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace terrace
