#include "worker/tensor/tensor.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr uint64_t kMax = (uint64_t{1} << 63) - 1;

TEST(Shape, PrintsItsDimensionsAndComparesByThem) {
  EXPECT_EQ(Shape({}).ToString(), "[]");
  EXPECT_EQ(Shape({7}).ToString(), "[7]");
  EXPECT_EQ(Shape({1024, 64}).ToString(), "[1024, 64]");
  EXPECT_EQ(Shape({2, 3}), Shape({2, 3}));
  EXPECT_NE(Shape({2, 3}), Shape({2, 3, 1}));
}

TEST(ElementCount, IsTheProductUpToTheLimit) {
  EXPECT_EQ(*ElementCount(Shape({})), 1u);
  EXPECT_EQ(*ElementCount(Shape({5, 0, 7})), 0u);
  EXPECT_EQ(*ElementCount(Shape({2, 3, 5, 7})), 210u);
  EXPECT_EQ(*ElementCount(Shape({kMax, 1})), kMax);
}

TEST(ElementCount, RefusesProductsThatPassOrWrapTheLimit) {
  const Shape shapes[] = {Shape({kMax, 2}),
                          Shape({uint64_t{1} << 32, uint64_t{1} << 32}),  // 2^64: wraps to 0
                          Shape({(uint64_t{1} << 42) + 1, uint64_t{1} << 22}), Shape({kMax + 1}),
                          Shape({~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}})};
  for (const Shape& shape : shapes) {
    const auto count = ElementCount(shape);
    ASSERT_FALSE(count.ok()) << shape.ToString();
    EXPECT_EQ(count.status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(Reason(count.status()), "bad_shape") << shape.ToString();
  }
}

TEST(ByteCount, CountsWholeBlocks) {
  EXPECT_EQ(*ByteCount(DType::kF32, Shape({3, 5})), 60u);
  EXPECT_EQ(*ByteCount(DType::kF16, Shape({3, 5})), 30u);
  EXPECT_EQ(*ByteCount(DType::kBF16, Shape({})), 2u);
  EXPECT_EQ(*ByteCount(DType::kQ8_0, Shape({3, 64})), 3u * 2 * 34);
}

TEST(ByteCount, RefusesPartialBlocksOfTheInnermostDimension) {
  for (const Shape& shape : {Shape({32, 33}), Shape({64, 16}), Shape({})}) {
    const auto bytes = ByteCount(DType::kQ8_0, shape);
    ASSERT_FALSE(bytes.ok()) << shape.ToString();
    EXPECT_EQ(Reason(bytes.status()), "bad_dtype") << shape.ToString();
  }
}

TEST(ByteCount, RefusesByteOverflowOfACountThatFits) {
  const auto bytes = ByteCount(DType::kF32, Shape({uint64_t{1} << 62}));
  ASSERT_FALSE(bytes.ok());
  EXPECT_EQ(Reason(bytes.status()), "bad_shape");
}

}  // namespace
}  // namespace terrace
