#include "router/dispatch/arrival_meter.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

MonoTime At(int millis) { return MonoTime(std::chrono::milliseconds(millis)); }

TEST(ArrivalMeter, OnlyTimesBetweenTokensThatWereReadAsTheyCameCount) {
  ArrivalMeter meter;
  meter.OnTokens(5, true, At(1000));  // the first ones: that was the prompt's time
  EXPECT_EQ(meter.tokens(), 0u);
  meter.OnTokens(1, true, At(1250));
  meter.OnTokens(3, true, At(2000));
  meter.OnTokens(7, false, At(9000));
  meter.OnTokens(1, true, At(9500));
  EXPECT_EQ(meter.tokens(), 5u);
  const ArrivalMeter::Measured measured = meter.Take();
  EXPECT_EQ(measured.tokens, 5u);
  EXPECT_DOUBLE_EQ(measured.seconds, 0.25 + 0.75 + 0.5);
  EXPECT_EQ(meter.Take().tokens, 0u);
  meter.OnTokens(1, true, At(9600));
  EXPECT_DOUBLE_EQ(meter.Take().seconds, 0.1);
}

}  // namespace
}  // namespace terrace
