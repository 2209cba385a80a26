// Recognises files that are no models of ours by their first bytes. They are refused: nothing is ever
// unpickled or unpacked.
#pragma once

#include <cstddef>
#include <span>

#include "base/status.h"

namespace terrace {

// DATA_LOSS, reason unsupported_format, for pickles, zip (PyTorch), gzip and tar archives and the formats
// before GGUF; OK for anything else.
Status RefuseForeignFormat(std::span<const std::byte> file);

}  // namespace terrace
