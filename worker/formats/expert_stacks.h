// GGUF files keep a matrix of all experts of a layer as one tensor [experts, outputs, inputs], a stack:
// "blk.3.ffn_up_exps.weight". Everybody else sees a matrix of each expert, as the first files had them
// ("blk.3.ffn_up.5.weight"). Pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "worker/formats/weight_source.h"

namespace terrace {

// Each stack becomes its matrices, in place. DATA_LOSS names the stack: reasons bad_shape (not three
// dimensions, or more than kMaxExperts), bad_name (a matrix that is there beside it) and count_limit.
Status SplitStacks(std::vector<WeightSource::Entry>& entries);

// The stack that a matrix of an expert belongs to, or "".
std::string StackOf(std::string_view name);

}  // namespace terrace
