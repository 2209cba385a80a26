#include "base/http_body.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

TEST(HttpBody, TakesMemoryAsItComesAndNeverPastWhatWasAnnounced) {
  const auto budget = std::make_shared<ByteBudget>(1'000'000);
  HttpBody body(ByteLease(budget), 5000);
  std::string sent;
  for (size_t piece = 1; sent.size() < 5000; piece = piece % 97 + 1) {
    const std::string text(std::min(piece, 5000 - sent.size()), static_cast<char>('a' + piece % 26));
    ASSERT_TRUE(body.Append(text));
    sent += text;
    EXPECT_EQ(body.size(), sent.size());
    EXPECT_LE(budget->used(), 2 * body.size());
    EXPECT_LE(budget->used(), 5000u);
  }
  const auto [text, lease] = body.Take();
  EXPECT_EQ(text, sent);
  EXPECT_EQ(lease.bytes(), 5000u);
  EXPECT_EQ(budget->used(), 5000u) << "with whoever has the text";
}

TEST(HttpBody, ReservedMemoryIsTakenOnce) {
  const auto budget = std::make_shared<ByteBudget>(1000);
  HttpBody body(ByteLease(budget), 500);
  EXPECT_TRUE(body.Reserve(400));
  EXPECT_EQ(budget->used(), 400u);
  EXPECT_TRUE(body.Append(std::string(400, 'x')));
  EXPECT_EQ(budget->used(), 400u);
  EXPECT_TRUE(body.Append("x"));
  EXPECT_EQ(budget->used(), 500u) << "all that it can need";
}

TEST(HttpBody, WithoutMemoryLeftItStaysAsItIs) {
  const auto budget = std::make_shared<ByteBudget>(100);
  HttpBody body(ByteLease(budget), 1000);
  ASSERT_TRUE(body.Append(std::string(50, 'a')));
  {
    ByteLease other(budget);
    ASSERT_TRUE(other.Resize(50));
    EXPECT_FALSE(body.Append("b"));
    EXPECT_FALSE(body.Reserve(51));
    EXPECT_EQ(body.size(), 50u);
    EXPECT_EQ(budget->used(), 100u);
  }
  EXPECT_TRUE(body.Append("b")) << "the other one is gone";
  EXPECT_EQ(body.Take().first, std::string(50, 'a') + "b");
  EXPECT_EQ(budget->used(), 0u);
}

}  // namespace
}  // namespace terrace
