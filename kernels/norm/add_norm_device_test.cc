#include "kernels/norm/add_norm_device.h"

#include "kernels/norm/add_norm_testing.h"
#include "kernels/op_testing.h"

namespace terrace {
namespace {

constexpr float kEpsilon = 1e-6f;

void AddNorm(const std::vector<float>& x, const std::vector<float>& weight, float* hidden, uint64_t seed) {
  const GpuAddNormArgs args = {.x = x.data(),
                               .weight = weight.data(),
                               .hidden = hidden,
                               .count = static_cast<uint32_t>(x.size() / weight.size()),
                               .width = static_cast<uint32_t>(weight.size()),
                               .epsilon = kEpsilon};
  LaunchAddNorm(args, [&](void (*kernel)(GpuAddNormArgs), uint32_t threads) {
    simt::RunSeeded(seed, {args.count}, threads, 0, kernel, args);
  });
}

TEST(AddNormDevice, MatchesTheReference) {
  for (const size_t width : {8, 136, 1000, 2048, 2056, 2304, 4096, 5000, 8192, 8200, 20000}) {
    SCOPED_TRACE(testing::Message() << "width " << width);
    const std::vector<float> x = RandomNormal(3 * width, /*seed=*/width), weight = RandomNormal(width, 1),
                             before = RandomNormal(3 * width, 2);
    std::vector<float> hidden = before;
    hidden.push_back(12345);
    AddNorm(x, weight, hidden.data(), /*seed=*/width % 3);
    for (size_t row = 0; row < 3; ++row)
      ExpectAddNormRow(&x[row * width], weight, kEpsilon, &before[row * width], &hidden[row * width]);
    EXPECT_EQ(hidden.back(), 12345);
  }
}

TEST(AddNormDevice, ARowIsTheSameWhateverIsBesideIt) {
  for (const size_t width : {64, 4096, 8200}) {
    const std::vector<float> x = RandomNormal(3 * width, /*seed=*/5), weight = RandomNormal(width, 6);
    std::vector<float> all(3 * width, 0.5f), alone(width, 0.5f);
    AddNorm(x, weight, all.data(), 0);
    AddNorm({x.begin() + static_cast<ptrdiff_t>(2 * width), x.end()}, weight, alone.data(), 7);
    EXPECT_EQ(std::vector<float>(all.begin() + static_cast<ptrdiff_t>(2 * width), all.end()), alone);
  }
}

TEST(AddNormDevice, ZerosAddNothingAndWhatIsNotFiniteShows) {
  for (const size_t width : {256, 8200}) {
    std::vector<float> x(5 * width), hidden(5 * width, 3);
    for (size_t i = width; i < x.size(); ++i) x[i] = 1;
    x[width + 17] = NAN;
    x[2 * width + 255] = INFINITY;
    x[3 * width + 200] = 3e19f;  // its square overflows
    AddNorm(x, std::vector<float>(width, 2), hidden.data(), /*seed=*/1);
    for (size_t i = 0; i < width; ++i) {
      EXPECT_EQ(hidden[i], 3);
      for (const size_t row : {1, 2, 3}) ASSERT_TRUE(std::isnan(hidden[row * width + i])) << row;
      EXPECT_NEAR(hidden[4 * width + i], 5, 1e-5);
    }
  }
}

}  // namespace
}  // namespace terrace
