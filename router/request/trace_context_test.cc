#include "router/request/trace_context.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr char kExample[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";  // the specification's
constexpr std::array<uint8_t, 24> kRandom = {1, 2, 3, 4, 5, 6, 7, 8, 9};

TEST(TraceContext, AHeaderIsWrittenAsItWasRead) {
  const auto parsed = ParseTraceParent(kExample);
  ASSERT_TRUE(parsed.has_value());
  EXPECT_EQ(parsed->Header(), kExample);
}

TEST(TraceContext, ALaterVersionMayHaveMoreBehindADash) {
  const std::string later = "cc" + std::string(kExample).substr(2);
  EXPECT_TRUE(ParseTraceParent(later).has_value());
  EXPECT_TRUE(ParseTraceParent(later + "-what.the.future.holds").has_value());
  EXPECT_FALSE(ParseTraceParent(later + ".").has_value());
  EXPECT_FALSE(ParseTraceParent(std::string(kExample) + "-more").has_value());
}

TEST(TraceContext, WhatIsNotValidIsIgnored) {
  const std::string good = kExample;
  std::string upper = good, split = good, version = good, no_trace = good, no_span = good;
  upper[4] = 'A';
  split[35] = '_';
  version.replace(0, 2, "ff");
  no_trace.replace(3, 32, std::string(32, '0'));
  no_span.replace(36, 16, std::string(16, '0'));
  for (const std::string& bad : {std::string(), good.substr(1), upper, split, version, no_trace, no_span}) {
    EXPECT_FALSE(ParseTraceParent(bad).has_value()) << bad;
  }
}

TEST(TraceContext, ARouterGoesOnWithTheTraceUnderASpanOfItsOwn) {
  const TraceContext parent = *ParseTraceParent(kExample);
  const TraceContext own = ContinueTrace(kExample, "congo=t61rcWkgMzE", kRandom);
  EXPECT_EQ(own.trace_id, parent.trace_id);
  EXPECT_EQ(own.state, "congo=t61rcWkgMzE");
  EXPECT_EQ(own.flags, parent.flags);
  EXPECT_NE(own.span_id, parent.span_id);
}

TEST(TraceContext, WithoutAParentANewTraceBeginsThatNobodyAskedToSample) {
  for (const auto& random : {kRandom, std::array<uint8_t, 24>{}}) {
    const TraceContext own = ContinueTrace("nonsense", "congo=t61rcWkgMzE", random);
    EXPECT_EQ(own.flags, 0);
    EXPECT_EQ(own.state, "") << "it belongs to the caller's trace";
    EXPECT_TRUE(ParseTraceParent(own.Header()).has_value()) << own.Header();
  }
}

TEST(TraceContext, AllMembersOfAStateArePassedOnOrNone) {
  std::string many;
  for (int i = 0; i < 32; ++i) many += "k" + std::to_string(i) + "=v,";
  for (const std::string& good :
       {std::string("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"), std::string("a@b=x y"),
        "k=" + std::string(510, 'v'), many.substr(0, many.size() - 1)}) {
    EXPECT_EQ(ParseTraceState(good), good);
  }
  EXPECT_EQ(ParseTraceState(" a=1 "), "a=1");
  for (const char* spaced : {"a=1,\tb=2", "a=1, b=2,", ",a=1 ,\t,b=2", "\ta=1,,b=2\t"})
    EXPECT_EQ(ParseTraceState(spaced), "a=1,b=2") << spaced;
  for (const std::string& bad :
       {std::string("a"), std::string("=1"), std::string("a="), std::string("A=1"), std::string("a=1=2"),
        std::string("a=\x01"), std::string("a=\xc3\xa9"), "k=" + std::string(511, 'v'), many + "k32=v"}) {
    EXPECT_EQ(ParseTraceState(bad), "") << bad;
  }
}

}  // namespace
}  // namespace terrace
