// Trains a small model by what a large one says: logit distillation, with checkpoints (trainer.h has the
// loss).
//
// The bytes of the output follow from the request and the files it names, on one kind of processor with one
// number of threads; interruptions do not change them. Memory: the student in f32 four times (weights,
// gradient, two moments), the teacher in f32 unless a cache stands in for it, all rows as tokens, and what
// the layers keep of memory_tokens positions for the way back, of which logits take 4 bytes * vocabulary
// each, several times.
#pragma once

#include "base/status.h"
#include "tools/distill/distill_request.h"

namespace terrace {

// Writes request.out, a folder that workers load, and, beside it, request.out + ".distill.json": settings,
// digests, version, and what was measured. A run that was ended goes on from its last checkpoint when it is
// repeated with the same request (tools/optimize/journal.h); with another one the error names what differs.
// INVALID_ARGUMENT for what makes no sense (a path that is taken, values out of range; reason
// tokenizer_mismatch: vocabularies that differ), DATA_LOSS for malformed files, INTERNAL with reason
// numeric_error for a loss that is not finite, RESOURCE_EXHAUSTED for a full disk.
StatusOr<DistillReport> Distill(const DistillRequest& request);

}  // namespace terrace
