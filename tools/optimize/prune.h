// Prunes a model, layer by layer from its mapped file: weights become zero (tools/optimize/weight_pruning.h),
// or whole heads, feed-forward channels, layers and channels of the residual stream go (prune_plan.h,
// input_removal.h). The output is of the input's format; matrices that were quantized become F16 (those of
// layers, and all where the stream becomes narrower), norms F32.
//
// With calibration text a layer's inputs come from the pruned layers before it, and a linear's from the
// pruned linears before it. Where whole parts go, the model passes the text once more beforehand, to learn
// what they matter, and the linear that read what went (the attention's output, down) makes up for it by
// least squares. Of channels of the residual stream those are query, key, value, gate and up, over the inputs
// they have in the model as it is, which then goes over the text beside the smaller one. The output matrix
// only loses columns: tied, it is the embedding.
//
// Of models with experts weights become zero in each expert's matrices, by the tokens that go to the expert
// (by their size where these are fewer than inputs), and the matrix that chooses experts stays as it is. No
// parts of them go.
//
// Memory: as of quantize.h, and for SparseGPT 8 bytes for each weight of a matrix, where the residual stream
// becomes narrower a third layer in f32; hidden states are in two files where whole parts go, in three where
// the stream becomes narrower.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/status.h"
#include "tools/optimize/model_rewriter.h"
#include "tools/optimize/prune_plan.h"
#include "tools/optimize/weight_pruning.h"

namespace terrace {

struct PruneMethod {
  std::string_view name;
  bool passes_errors_on = false;  // SparseGPT; else the smallest weights go
};
inline constexpr PruneMethod kPruneMethods[] = {{"sparsegpt", true}, {"magnitude", false}};

struct PrunePattern {
  std::string_view name;
  uint32_t kept = 0, of = 0;
};
inline constexpr PrunePattern kPrunePatterns[] = {{"2:4", 2, 4}, {"4:8", 4, 8}};

// Either weights of a pattern, or a cut.
struct PruneRequest : RewriteRequest {
  PruneMethod method = kPruneMethods[0];  // of weights
  SparsityPattern pattern = {};
  Cut cut = {};
  bool repair = true;  // of a cut
};

struct PruneReport : RewriteReport {
  // Of matrices, as a CPU worker of this machine keeps them in memory and reads them in a step of one answer.
  uint64_t step_bytes_before = 0, step_bytes_after = 0;
  double ffn_removed = 0;        // of the feed-forward channels of the layers that stayed
  bool was_two_of_four = false;  // zeros of some matrix were skipped before
};

// Writes request.out and, beside it, request.out + ".prune.json": what was done, digests, version, the error
// of each linear, and of a cut what stayed. A run that was ended goes on where it was when it is repeated
// with the same request (journal.h). INVALID_ARGUMENT for what makes no sense, the errors of ModelRewriter.
StatusOr<PruneReport> Prune(const PruneRequest& request);

}  // namespace terrace
