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
      std::vector<int32_t> tokens(1000);  // enough for more than one thread
      for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * i % 7);
      std::vector<float> want(tokens.size() * width), got(want.size());
      const auto embed = [&](const OpTable& with, float scale, float* out) {
        with.embed({.tokens = tokens.data(),
                    .table = table.matrix,
                    .out = out,
                    .count = tokens.size(),
                    .scale = scale},
                   pool_);
      };
      for (const float scale : {1.0f, 47.8f}) {
        embed(ReferenceOps(), scale, want.data());
        embed(ops(), scale, got.data());
        EXPECT_TRUE(SameBits(got, want)) << "scale " << scale;
      }
    }
  }
}
INSTANTIATE_EVERY_CPU(EveryCpu);

}  // namespace
}  // namespace terrace
