// Files that commands write.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace terrace {

// The bytes are on the disk when this returns. UNAVAILABLE when there is something at `path`, or it cannot be
// written: then there is nothing. A secret one nobody else may read.
Status WriteNewFile(const std::string& path, std::string_view text, bool is_secret);

// ReplaceFile of worker/formats/staged_path.h, by way of a new file beside `path`. UNAVAILABLE, with `path`
// and the cause.
Status ReplaceFile(const std::string& path, std::string_view text);
// Whether it could, before hours are spent on what is to be written there. UNAVAILABLE.
Status CheckCanReplace(const std::string& path);
// That what an option writes at `path` is none of the files that others read, by option: "" is none.
// INVALID_ARGUMENT names both.
Status CheckIsNoInput(const char* option, const std::string& path,
                      const std::vector<std::pair<const char*, std::string>>& inputs);

}  // namespace terrace
