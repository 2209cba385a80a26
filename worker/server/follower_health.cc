#include "worker/server/follower_health.h"

#include "base/json.h"

namespace terrace {

bool FollowerHealth::IsAlive(MonoTime now) const {
  const MonoTime last = last_turn_;
  return last == MonoTime() || now - last <= stall_limit_;
}

void FollowerHealth::Answer(const HttpRequest& request, HttpResponder& responder, MonoTime now) const {
  const auto send = [&](bool is_so, const char* yes, const char* no) {
    const Json body = {{"status", is_so ? yes : no}};
    responder.Send(is_so ? 200 : 503, ToJsonText(body));
  };
  if (request.method != "GET" && request.method != "HEAD") {
    responder.Send(405, R"({"error":"only GET and HEAD"})", "application/json", {{"allow", "GET, HEAD"}});
  } else if (request.path == "/healthz") {
    send(IsAlive(now), "alive", "stalled");
  } else if (request.path == "/readyz") {
    send(is_ready(), "ready", "not ready");
  } else {
    responder.Send(
        404, R"({"error":"no such path; of a rank that does not lead there are /healthz and /readyz"})");
  }
}

}  // namespace terrace
