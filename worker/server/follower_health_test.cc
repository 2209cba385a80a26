#include "worker/server/follower_health.h"

#include <atomic>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

TEST(FollowerHealth, IsAliveUntilItIsReadyAndThenAsLongAsItTurns) {
  FollowerHealth health(seconds(10));
  const MonoTime now = MonoTime(std::chrono::hours(1));
  EXPECT_FALSE(health.is_ready());
  EXPECT_TRUE(health.IsAlive(now));
  EXPECT_TRUE(health.IsAlive(now + std::chrono::hours(1))) << "a load takes what it takes";
  health.OnTurn(now);
  EXPECT_TRUE(health.is_ready());
  EXPECT_TRUE(health.IsAlive(now + seconds(10)));
  EXPECT_FALSE(health.IsAlive(now + seconds(10) + std::chrono::nanoseconds(1)));
  health.OnTurn(now + seconds(11));
  EXPECT_TRUE(health.IsAlive(now + seconds(21)));
}

TEST(FollowerHealth, ProbesAreAnsweredByIt) {
  FollowerHealth health(seconds(10));
  const MonoTime begin = MonoTime(std::chrono::hours(1));
  std::atomic<MonoTime> now = begin;
  const auto server = HttpServer::Start(
      HttpServerOptions(), [&](const HttpRequest& request, const std::shared_ptr<HttpResponder>& responder) {
        health.Answer(request, *responder, now);
      });
  ASSERT_TRUE(server.ok()) << server.status();
  const auto get = [&](const char* path) {
    return HttpGet((*server)->address() + path, /*timeout_seconds=*/60);
  };
  EXPECT_TRUE(get("/healthz").ok());
  EXPECT_THAT(Message(get("/readyz").status()), HasSubstr("503"));
  health.OnTurn(begin);
  EXPECT_TRUE(get("/readyz").ok());
  now = begin + seconds(11);
  EXPECT_THAT(Message(get("/healthz").status()), HasSubstr("503"));
  EXPECT_THAT(Message(get("/metrics").status()), HasSubstr("404"));
}

}  // namespace
}  // namespace terrace
