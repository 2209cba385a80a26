#include "worker/tensor/tensor.h"

#include <algorithm>
#include <limits>
#include <optional>

namespace terrace {
namespace {

constexpr uint64_t kMaxCount = std::numeric_limits<int64_t>::max();

// a * b; nothing when it passes 2^63 - 1.
std::optional<uint64_t> Multiply(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product) || product > kMaxCount) return std::nullopt;
  return product;
}

}  // namespace

Shape::Shape(std::initializer_list<uint64_t> list) : rank(list.size()) {
  CHECK(rank <= kMaxRank, "rank ", rank);
  std::copy(list.begin(), list.end(), dims.begin());
}

std::string Shape::ToString() const {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += Concat(i == 0 ? "" : ", ", dims[i]);
  return text + "]";
}

StatusOr<uint64_t> ElementCount(const Shape& shape) {
  uint64_t count = 1;
  for (size_t i = 0; i < shape.rank; ++i) {
    const std::optional<uint64_t> product = Multiply(count, shape[i]);
    if (!product)
      return WithReason(
          InvalidArgument("shape ", shape.ToString(), " has more than ", kMaxCount, " elements"),
          "bad_shape");
    count = *product;
  }
  return count;
}

StatusOr<uint64_t> ByteCount(DType dtype, const Shape& shape) {
  const DTypeInfo info = Info(dtype);
  ASSIGN_OR_RETURN(const uint64_t elements, ElementCount(shape));
  const uint64_t innermost = shape.rank == 0 ? 1 : shape[shape.rank - 1];
  if (innermost % info.block_elements != 0)
    return WithReason(InvalidArgument("rows of ", innermost, " elements are not whole ", info.name,
                                      " blocks of ", info.block_elements),
                      "bad_dtype");
  const std::optional<uint64_t> bytes = Multiply(elements / info.block_elements, info.block_bytes);
  if (!bytes)
    return WithReason(InvalidArgument("shape ", shape.ToString(), " of ", info.name, " has more than ",
                                      kMaxCount, " bytes"),
                      "bad_shape");
  return *bytes;
}

}  // namespace terrace
