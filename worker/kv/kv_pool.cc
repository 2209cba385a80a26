#include "worker/kv/kv_pool.h"

#include <cstring>
#include <limits>

namespace terrace {

StatusOr<KvDType> ParseKvDType(std::string_view name) {
  std::string known;
  for (const KvDType dtype : kEveryKvDType) {
    if (name == KvDTypeName(dtype)) return dtype;
    known += Concat(known.empty() ? "" : ", ", KvDTypeName(dtype));
  }
  return WithReason(InvalidArgument("KV dtype \"", name, "\", not one of ", known), "invalid_value");
}

namespace {

// Of `blocks` blocks. RESOURCE_EXHAUSTED when it passes what an address can reach.
StatusOr<uint64_t> BytesOf(const KvShape& shape, uint32_t blocks, std::string_view what) {
  constexpr uint64_t kMost = std::numeric_limits<ptrdiff_t>::max() - 2 * LargeBuffer::kAlignment;
  // Factors of up to 35 bits: multiplied one by one, each checked.
  uint64_t bytes = 2;
  for (const uint64_t factor : {uint64_t{shape.layers}, uint64_t{shape.kv_heads},
                                uint64_t{shape.block_tokens}, shape.RowBytes(), uint64_t{blocks}}) {
    if (factor > 0 && bytes > kMost / factor) {
      return ResourceExhausted(what, ": ", blocks, " blocks of ", shape.block_tokens,
                               " positions pass what an address can reach");
    }
    bytes *= factor;
  }
  return bytes;
}

}  // namespace

StatusOr<std::unique_ptr<KvPool>> KvPool::Create(const KvShape& shape) {
  CHECK(shape.layers > 0 && shape.kv_heads > 0 && shape.head_dim > 0 && shape.block_tokens > 0 &&
            shape.blocks > 0,
        "an empty KV pool");
  constexpr std::string_view kPool = "KV cache", kHost = "KV swap memory";
  ASSIGN_OR_RETURN(const uint64_t bytes, BytesOf(shape, shape.blocks, kPool));
  ASSIGN_OR_RETURN(const uint64_t host_bytes, BytesOf(shape, shape.host_blocks, kHost));
  // A first token touches each layer and head: hundreds of places. Huge pages make attention to a long
  // context up to a sixth faster (docs/performance.md), and a short one take that many times 2 MiB.
  constexpr auto kPages = LargeBuffer::Pages::kSmall;
  ASSIGN_OR_RETURN(LargeBuffer memory, LargeBuffer::Allocate(bytes, kPool, kPages));
  ASSIGN_OR_RETURN(LargeBuffer host, LargeBuffer::Allocate(host_bytes, kHost, kPages));
  return std::unique_ptr<KvPool>(new KvPool(shape, std::move(memory), std::move(host)));
}

KvLayer KvPool::layer(uint32_t layer) {
  const uint64_t rows = uint64_t{shape_.blocks} * shape_.kv_heads * shape_.block_tokens;
  const uint64_t data_bytes = rows * shape_.head_dim * KvElementBytes(shape_.dtype);
  const uint64_t scale_bytes = HasScales(shape_.dtype) ? rows * sizeof(float) : 0;
  std::byte* data = memory_.data() + 2 * shape_.layers * scale_bytes;
  const auto part = [&](uint64_t index) -> KvRows {
    return {.data = data + index * data_bytes,
            .scales = HasScales(shape_.dtype) ? reinterpret_cast<float*>(memory_.data() + index * scale_bytes)
                                              : nullptr};
  };
  return {.dtype = shape_.dtype, .keys = part(2 * layer), .values = part(2 * layer + 1)};
}

template <typename Visit>
void KvPool::EachPart(BlockId block, Visit visit) {
  CHECK(block >= 0 && static_cast<uint32_t>(block) < shape_.blocks, "KV block ", block, " of ",
        shape_.blocks);
  const uint64_t rows = shape_.block_tokens, bytes = rows * shape_.head_dim * KvElementBytes(shape_.dtype);
  for (uint32_t i = 0; i < shape_.layers; ++i) {
    const KvLayer whole = layer(i);
    for (const KvRows& part : {whole.keys, whole.values}) {
      for (uint64_t head = 0; head < shape_.kv_heads; ++head) {
        const uint64_t index = head * shape_.blocks + static_cast<uint64_t>(block);
        visit(part.data + index * bytes, bytes);
        if (part.scales == nullptr) continue;
        visit(reinterpret_cast<std::byte*>(part.scales + index * rows), rows * sizeof(float));
      }
    }
  }
}

void KvPool::CopyRows(BlockId from, BlockId to, uint32_t rows) {
  CHECK(from != to && from >= 0 && static_cast<uint32_t>(from) < shape_.blocks && rows <= shape_.block_tokens,
        rows, " rows of KV block ", from, " to ", to);
  const ptrdiff_t blocks = ptrdiff_t{from} - to;
  EachPart(to, [&](std::byte* part, uint64_t bytes) {
    std::memcpy(part, part + blocks * static_cast<ptrdiff_t>(bytes), bytes / shape_.block_tokens * rows);
  });
}

void KvPool::CopyToHost(BlockId from, uint32_t host_block) {
  CHECK(host_block < shape_.host_blocks, "swap block ", host_block, " of ", shape_.host_blocks);
  std::byte* to = host_.data() + host_block * shape_.BlockBytes();
  EachPart(from, [&](const std::byte* part, uint64_t bytes) {
    std::memcpy(to, part, bytes);
    to += bytes;
  });
}

void KvPool::CopyFromHost(uint32_t host_block, BlockId to) {
  CHECK(host_block < shape_.host_blocks, "swap block ", host_block, " of ", shape_.host_blocks);
  const std::byte* from = host_.data() + host_block * shape_.BlockBytes();
  EachPart(to, [&](std::byte* part, uint64_t bytes) {
    std::memcpy(part, from, bytes);
    from += bytes;
  });
}

}  // namespace terrace
