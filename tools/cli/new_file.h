// Files that commands write.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace terrace {

// UNAVAILABLE when there is something at `path`, or it cannot be written. A secret one nobody else may read.
Status WriteNewFile(const std::string& path, std::string_view text, bool is_secret);

// ReplaceFile of worker/formats/staged_path.h, by way of a file beside `path`. UNAVAILABLE, with `path` and
// the cause.
Status ReplaceFile(const std::string& path, std::string_view text);
// Whether it could, before hours are spent on what is to be written there. UNAVAILABLE.
Status CheckCanReplace(const std::string& path);

}  // namespace terrace
