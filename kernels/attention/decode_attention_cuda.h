// Decode of paged_attention_gpu.h on a CUDA device.
#pragma once

#include "kernels/attention/paged_attention_gpu.h"
#include "kernels/launch_cuda.h"

namespace terrace {

// Queues attention of tokens [first, first + count); nothing for no tokens. Keys and values up to each
// token's own position have been written; the rows behind it may hold anything. With f16 and fp8 rows q is
// saturated at 65504. A most_spans far above the truth costs blocks that find nothing to do, up to 4096.
//
// With `cos` the tokens' own keys and values are made here. No other token up to its position may then be of
// the same sequence and step: one would read what the other writes. And a kernel that follows reads the keys
// and values of earlier steps, positions, sequences and block tables before it waits: what wrote them has to
// come before a kernel on the stream that does not follow, such as the first of a step.
//
// cudaErrorInvalidValue unless
//   head_dim is 32, 64 or 128, with 1 to 16 heads to a kv head, or 256, with 1 to 8 and no cos,
//   rows are not f32, in blocks of at least 16 positions,
//   q_pitch is a multiple of 8, and q, out, keys, values, their scales and partials are aligned to 16 bytes,
//   cos and sin, if there are any, are too, q_pitch is at least (heads + 2 kv_heads) * head_dim, and there is
//   neither a window nor a cap,
//   softcap is not negative,
//   count and kv_heads are at most 65535, most_spans is at least 1, and there are `partials` and `arrived`
//   where it is more.
cudaError_t DecodeAttentionCuda(const GpuAttentionArgs& args, CudaLaunch how);

// Whether `args` are within these limits.
bool IsDecodable(const GpuAttentionArgs& args);

}  // namespace terrace
