#include "tools/distill/checkpoint.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

const TrainerState kState = {.steps = 7, .tensors = {{{1, 2, 3}, {4, 5, 6}, {7, 8, 9}}, {{0.5}, {}, {}}}};

TEST(Checkpoint, ReadsBackWhatWasPacked) {
  const auto state = ParseState(PackState(kState));
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->steps, kState.steps);
  ASSERT_EQ(state->tensors.size(), kState.tensors.size());
  for (size_t i = 0; i < kState.tensors.size(); ++i) {
    EXPECT_EQ(state->tensors[i].values, kState.tensors[i].values);
    EXPECT_EQ(state->tensors[i].mean, kState.tensors[i].mean);
    EXPECT_EQ(state->tensors[i].square, kState.tensors[i].square);
  }
}

TEST(Checkpoint, BytesOfAnotherLengthAreNone) {
  std::vector<std::byte> bytes = PackState(kState);
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_EQ(ParseState(std::span(bytes).first(size)).status().code(), StatusCode::kDataLoss) << size;
  bytes.push_back(std::byte{0});
  EXPECT_EQ(ParseState(bytes).status().code(), StatusCode::kDataLoss);
}

}  // namespace
}  // namespace terrace
