// What of a model's weight files a rank uses, and whether those bytes are the ones of its digest, where that
// was told by a list (worker/formats/digest_list.h).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/status.h"
#include "worker/formats/model_config.h"
#include "worker/formats/model_files.h"
#include "worker/formats/stored_ranges.h"
#include "worker/parallel/shard_plan.h"

namespace terrace {

// Of each tensor that is here its rows; all of one that is cut by columns, as each row has some of them.
std::vector<TensorRows> SliceOf(const ModelConfig& config, const ShardPlan& plan);

// Hashes and compares the pieces of the weight files that have a byte of the slice or of a header, before
// anything of them is computed with; the number of bytes that were hashed. Of files that were opened without
// a list all were already. Errors of VerifyPieces and RangesOf.
StatusOr<uint64_t> VerifySlice(const ModelFiles& files, const ShardPlan& plan,
                               const std::function<bool()>& is_cancelled);

}  // namespace terrace
