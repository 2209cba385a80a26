#include "worker/engine/verified_slice.h"

#include "worker/formats/tensor_names.h"

namespace terrace {

std::vector<TensorRows> SliceOf(const ModelConfig& config, const ShardPlan& plan) {
  std::vector<TensorRows> slice;
  for (const TensorRequirement& required : RequiredTensors(config)) {
    if (!IsHere(plan, config, required.kind, required.layer)) continue;
    const uint64_t rows = required.shape.rank > 1 ? required.shape[0] : 1;
    const TensorPart part = PartOf(plan, config, required.kind, required.layer);
    const IndexRange own = part.rows.value_or(IndexRange{.begin = 0, .end = rows});
    slice.push_back({.name = required.name, .rows = rows, .begin = own.begin, .end = own.end});
  }
  return slice;
}

StatusOr<uint64_t> VerifySlice(const ModelFiles& files, const ShardPlan& plan,
                               const std::function<bool()>& is_cancelled) {
  if (files.digest_list_path.empty()) return files.digest_list.bytes();
  ASSIGN_OR_RETURN(const std::vector<FileRange> ranges,
                   RangesOf(files.weights->files(), SliceOf(files.config, plan)));
  return VerifyPieces(files.listed(), ranges, is_cancelled);
}

}  // namespace terrace
