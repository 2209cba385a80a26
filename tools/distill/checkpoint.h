// A trainer's state as bytes, for a part of a Journal. Pure.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/status.h"
#include "tools/distill/trainer.h"

namespace terrace {

std::vector<std::byte> PackState(const TrainerState& state);

// DATA_LOSS for bytes that are no state.
StatusOr<TrainerState> ParseState(std::span<const std::byte> bytes);

}  // namespace terrace
