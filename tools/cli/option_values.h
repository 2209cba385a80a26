// Checks of the command line that CLI11 lacks: it reads "" as 0, "010" as 8, and "-1" as 2^64 - 1.
#pragma once

#include "CLI/CLI.hpp"

namespace terrace {

// The type names of options that take numbers; those that take lists of them begin alike, "N,N,...".
inline constexpr char kWholeNumber[] = "N", kSignedNumber[] = "[-]N", kRealNumber[] = "X";
inline constexpr char kAddress[] = "ADDR";  // host:port

// Has every option of the commands of `app` check its value, by its type name: numbers are decimal, whole and
// not negative where the name says so, addresses have a port, and only a text may be empty. After all options
// were added.
void CheckOptionValues(CLI::App& app);

}  // namespace terrace
