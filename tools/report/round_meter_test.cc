#include "tools/report/round_meter.h"

#include <functional>
#include <memory>
#include <vector>

#include "base/fake_clock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using std::chrono::milliseconds;

const std::function<bool()> kNever = [] { return false; };

// Steps as an engine's thread would tell them.
class RoundMeterTest : public testing::Test {
 protected:
  void Begin(uint32_t sequences) {
    meter_.Begin(sequences);
    sinks_.clear();
    sent_.assign(sequences, 0);
    for (uint32_t i = 0; i < sequences; ++i) sinks_.push_back(meter_.MakeSink());
    clock_.Advance(milliseconds(1000));  // while sequences are handed over
    for (const auto& sink : sinks_) EXPECT_TRUE(sink->is_full()) << "none begins before the others are there";
    meter_.Open();
    for (const auto& sink : sinks_) EXPECT_FALSE(sink->is_full());
  }
  void Send(size_t sequence, uint32_t count) {
    const std::vector<SampledToken> tokens(count);
    sinks_[sequence]->OnTokens(sent_[sequence], tokens);
    sent_[sequence] += count;
  }
  void Finish(size_t sequence, FinishReason reason = FinishReason::kLength, const Status& error = {}) {
    SequenceResult result;
    result.reason = reason;
    result.error = error;
    sinks_[sequence]->OnFinish(result);
  }
  void Step(int millis) {
    clock_.Advance(milliseconds(millis));
    meter_.OnStep();
  }

  FakeClock clock_;
  RoundMeter meter_{clock_};
  std::vector<std::shared_ptr<TokenSink>> sinks_;
  std::vector<uint32_t> sent_;
};

TEST_F(RoundMeterTest, ReadingEndsWithTheLastFirstTokenAndDecodingWithTheFirstEnd) {
  Begin(2);
  Send(0, 1);
  Step(10);  // the first one's prompt
  Send(0, 1);
  Send(1, 1);
  Step(20);  // the other's, beside a decode that does not count
  Send(0, 1);
  Send(1, 3);  // with a draft
  Step(4);
  Send(0, 1);
  Finish(0);
  Send(1, 1);
  Step(6);
  Send(1, 1);
  Finish(1);
  Step(100);  // alone: not the batch that is measured
  const auto times = meter_.Await(kNever);
  ASSERT_TRUE(times.ok()) << times.status();
  EXPECT_DOUBLE_EQ(times->prefill_seconds, 0.030);
  EXPECT_DOUBLE_EQ(times->decode_seconds, 0.010);
  EXPECT_EQ(times->decode_tokens, 6u);
}

TEST_F(RoundMeterTest, ARoundBeginsAnew) {
  for (int round = 0; round < 2; ++round) {
    Begin(1);
    Send(0, 1);
    Step(3);
    Send(0, 1);
    Finish(0);
    Step(7);
    const auto times = meter_.Await(kNever);
    ASSERT_TRUE(times.ok());
    EXPECT_DOUBLE_EQ(times->prefill_seconds, 0.003);
    EXPECT_DOUBLE_EQ(times->decode_seconds, 0.007);
    EXPECT_EQ(times->decode_tokens, 1u);
    clock_.Advance(milliseconds(500));  // between rounds
  }
}

TEST_F(RoundMeterTest, AnswersThatEndBeforeTheLastPromptIsReadDecodeNothing) {
  Begin(2);
  Send(0, 2);
  Finish(0);
  Step(1);
  Send(1, 1);
  Step(1);
  Send(1, 1);
  Finish(1);
  Step(1);
  EXPECT_EQ(meter_.Await(kNever)->decode_tokens, 0u);
}

TEST_F(RoundMeterTest, TheErrorOfASequenceEndsTheWait) {
  Begin(2);
  Finish(1, FinishReason::kError, Internal("broken"));
  EXPECT_EQ(meter_.Await(kNever).status().code(), StatusCode::kInternal);
  Begin(1);
  EXPECT_EQ(meter_.Await([] { return true; }).status().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace terrace
