#include "kernels/embed/embed_device.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/scalar_convert.h"

namespace terrace {
namespace {

TEST(EmbedDevice, LooksRowsUpExactly) {
  for (const uint32_t width : {8u, 1000u, 4096u, 4104u, 9000u}) {
    const std::vector<int32_t> tokens = {2, 0, 6, 2, -1, 7};  // of 7: the last two do not exist
    std::vector<uint16_t> table(size_t{7} * width);
    for (size_t i = 0; i < table.size(); ++i)
      table[i] = static_cast<uint16_t>((i * 40503) & 0xbf7f);  // finite
    std::vector<float> out(tokens.size() * width + 1, 12345);
    const float scale = width % 3 == 0 ? 47.8f : 1;
    const GpuEmbedArgs args = {.tokens = tokens.data(),
                               .count = static_cast<uint32_t>(tokens.size()),
                               .table = table.data(),
                               .vocab = 7,
                               .width = width,
                               .out = out.data(),
                               .scale = scale};
    simt::RunSeeded(width, {args.count, (width + kEmbedColumns - 1) / kEmbedColumns}, kEmbedThreads, 0,
                    EmbedKernel, args);
    for (size_t i = 0; i < tokens.size(); ++i) {
      for (size_t k = 0; k < width; ++k) {
        const float got = out[i * width + k];
        if (i < 4) {
          ASSERT_EQ(got, scale * FloatFromBF16(table[static_cast<size_t>(tokens[i]) * width + k]))
              << i << " " << k;
        } else {
          ASSERT_TRUE(std::isnan(got)) << i << " " << k;
        }
      }
    }
    EXPECT_EQ(out.back(), 12345);
  }
}

}  // namespace
}  // namespace terrace
