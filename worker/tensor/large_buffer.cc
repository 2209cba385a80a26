#include "worker/tensor/large_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>

#include "worker/tensor/memory_nodes.h"

namespace terrace {

StatusOr<LargeBuffer> LargeBuffer::Allocate(size_t bytes, std::string_view what, Pages pages) {
  LargeBuffer out;
  if (bytes == 0) return out;
  const auto failed = [&](int error) {
    return ResourceExhausted(what, ": ", bytes, " bytes cannot be had: ", std::strerror(error));
  };
  if (bytes > std::numeric_limits<ptrdiff_t>::max() - 2 * kAlignment) return failed(ENOMEM);
  // One alignment more than wanted; the unaligned ends are given back.
  const size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment, mapped = size + kAlignment;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return failed(errno);
  auto* first = static_cast<std::byte*>(memory);
  const size_t before = -reinterpret_cast<uintptr_t>(first) % kAlignment;
  if (before > 0) munmap(first, before);
  if (before < kAlignment) munmap(first + before + size, kAlignment - before);
  out.data_ = first + before;
  out.size_ = size;
  if (pages == Pages::kHuge) madvise(out.data_, size, MADV_HUGEPAGE);  // a wish
  static const std::vector<int> nodes = MemoryNodes();
  if (nodes.size() > 1) InterleaveOverNodes(out.data_, size, nodes).IgnoreError();  // a wish, too
  return out;
}

LargeBuffer::~LargeBuffer() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace terrace
