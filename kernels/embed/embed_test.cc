#include "kernels/embed/embed.h"

#include "kernels/op_testing.h"

namespace terrace {
namespace {

TEST_P(EveryCpu, EmbedsExactlyAsTheReference) {
  for (const DType dtype : kEveryDType) {
    for (const size_t width : {1, 15, 16, 32, 64, 100, 256}) {
      if (width % Info(dtype).block_elements != 0) continue;
      SCOPED_TRACE(testing::Message() << Info(dtype).name << " width " << width);
      const RandomWeights table(dtype, 7, width, /*seed=*/width);
      const int32_t tokens[] = {6, 0, 3, 3};
      std::vector<float> want(4 * width), got(4 * width);
      EmbedRef({.tokens = tokens, .table = table.matrix, .out = want.data(), .count = 4});
      ops().embed({.tokens = tokens, .table = table.matrix, .out = got.data(), .count = 4});
      EXPECT_TRUE(SameBits(got, want));
    }
  }
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
