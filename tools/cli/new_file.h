// Files that commands write.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace terrace {

// UNAVAILABLE when there is something at `path`, or it cannot be written. A secret one nobody else may read.
Status WriteNewFile(const std::string& path, std::string_view text, bool is_secret);

// In place of what is at `path`: written beside it first, so that whoever reads it meanwhile sees the old one
// whole. UNAVAILABLE.
Status ReplaceFile(const std::string& path, std::string_view text);

}  // namespace terrace
