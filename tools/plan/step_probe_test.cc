#include "tools/plan/step_probe.h"

#include <algorithm>

#include "base/exit_code.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(ProbeRounds, SeeEveryNumberOfTokensThatAStepMayHave) {
  for (const uint32_t max_sequences : {1, 6, 16, 256}) {
    for (const uint32_t max_step_tokens : {256, 8192}) {
      for (const uint32_t context : {8, 64, 512, 8192, 131072}) {
        bool has_most_sequences = false, has_longest_chunk = false;
        for (const ProbeRound& round : ProbeRounds(max_sequences, max_step_tokens, context)) {
          EXPECT_GE(round.sequences, 1u);
          EXPECT_LE(round.sequences, max_sequences);
          EXPECT_GE(round.prompt_tokens, 1u);
          EXPECT_GE(round.answer_tokens, 2u);
          EXPECT_LE(round.prompt_tokens + round.answer_tokens, context);
          has_most_sequences |= round.sequences == max_sequences;
          has_longest_chunk |= round.prompt_tokens + 24 >= std::min(max_step_tokens, context);
        }
        EXPECT_TRUE(has_most_sequences && has_longest_chunk)
            << max_sequences << " " << max_step_tokens << " " << context;
      }
    }
  }
}

TEST(SamplesOf, TakesStepsWhoseWorkIsKnown) {
  const StepObservation one[] = {{.seconds = 5, .prefill_tokens = 256, .sequences = 1},
                                 {.seconds = 3, .prefill_tokens = 44, .sequences = 1},
                                 {.seconds = 1, .decode_tokens = 1, .sequences = 1},
                                 {.seconds = 2, .decode_tokens = 1, .sequences = 1}};
  const auto samples = SamplesOf({.sequences = 1, .prompt_tokens = 300}, one);
  ASSERT_EQ(samples.size(), 4u);
  EXPECT_EQ(samples[0].work.prefill_context, 256 * 128);
  EXPECT_EQ(samples[1].work.prefill_context, 44 * (256 + 22));
  EXPECT_EQ(samples[2].work.decode_context, 301);
  EXPECT_EQ(samples[3].work.decode_context, 302);
  EXPECT_EQ(samples[3].seconds, 2);
  const StepObservation two[] = {{.seconds = 5, .prefill_tokens = 20, .sequences = 2},
                                 {.seconds = 4, .prefill_tokens = 10, .decode_tokens = 1, .sequences = 2},
                                 {.seconds = 3, .decode_tokens = 2, .sequences = 2},
                                 {.seconds = 1, .decode_tokens = 1, .sequences = 1}};
  const auto of_two = SamplesOf({.sequences = 2, .prompt_tokens = 15}, two);
  ASSERT_EQ(of_two.size(), 1u);
  EXPECT_EQ(of_two[0].work.decode_tokens, 2u);
  EXPECT_EQ(of_two[0].work.decode_context, 2 * 16);
}

TEST(ProbeSteps, LearnsWhatStepsOfAModelTake) {
  OpenEngineOptions engine;
  engine.model = "models/terrace-demo-nano";
  engine.threads = 1;
  engine.device = "cpu";
  engine.max_sequences = 4;
  const auto probed = ProbeSteps(engine, /*repeats=*/1, [](const ModelFiles&) {
    return std::vector<TokenId>{5, 6, 7, 8};
  });
  ASSERT_TRUE(probed.ok()) << probed.status();
  EXPECT_EQ(probed->context_length, 512u);
  EXPECT_EQ(probed->max_step_tokens, 256u);
  EXPECT_EQ(probed->engine.kv_bytes_per_token, 2u * 3 * 64 * 4);
  for (const uint32_t tokens : {1, 2, 4, 32, 256})
    EXPECT_TRUE(probed->cost.curve().contains(tokens)) << tokens;
  EXPECT_GT(probed->cost.Seconds({.decode_tokens = 1}), 0);
  engine.model = "/absent";
  EXPECT_EQ(ExitCodeFor(ProbeSteps(engine, 1, nullptr).status()), kExitNoInput);
}

}  // namespace
}  // namespace terrace
