#include "worker/tensor/held_rows.h"

#include <mutex>
#include <new>

#include "base/parallel_for.h"

namespace terrace {
namespace {

constexpr size_t kRowsTogether = 64;

// Calls the maker for pieces of the rows, on all threads.
Status Make(const RowMaker& maker, uint64_t begin, uint64_t end, uint64_t row_bytes, std::byte* to,
            ThreadPool& pool) {
  std::mutex mutex;
  uint64_t first_bad = end;  // of a piece
  Status error;
  pool.ParallelFor(end - begin, kRowsTogether, [&](size_t first, size_t last) {
    const Status made = maker.Make(begin + first, begin + last, to + first * row_bytes);
    if (made.ok()) return;
    const std::lock_guard lock(mutex);
    if (begin + first >= first_bad) return;
    first_bad = begin + first;
    error = made;
  });
  return error;
}

}  // namespace

StatusOr<HeldRows> HeldRows::Hold(const TensorView& tensor, uint64_t begin, uint64_t end, ThreadPool& pool) {
  HeldRows out;
  out.matrix_ = RowsOf(OutlineOf(tensor), begin, end - begin);
  if (tensor.maker == nullptr) return out;
  const uint64_t row_bytes = out.matrix_.RowBytes(), bytes = (end - begin) * row_bytes;
  out.memory_.reset(new (std::nothrow) std::byte[bytes]);
  if (out.memory_ == nullptr) return ResourceExhausted("no memory for ", bytes, " bytes of a matrix");
  out.matrix_.data = out.memory_.get();
  RETURN_IF_ERROR(Make(*tensor.maker, begin, end, row_bytes, out.memory_.get(), pool));
  return out;
}

StatusOr<HeldRows> HeldRows::Hold(const TensorView& tensor, ThreadPool& pool) {
  return Hold(tensor, 0, OutlineOf(tensor).rows, pool);
}

}  // namespace terrace
