// A TCP proxy that does harm on command, for tests of whatever talks over a network: delay, jitter, a rate,
// stalls, black holes, flipped bits, cuts after an exact byte, half-closes, resets, refusals. What it does is
// a function of its seed, the bytes and the commands. Owns its listener, its connections and one thread.
// Every call may come from any thread, and has taken effect when it returns.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "tests/chaos/faults.h"

namespace terrace {

class FaultProxy {
 public:
  struct Options {
    std::string listen = "127.0.0.1:0";  // port 0: any free one
    std::string upstream = {};           // host:port
    uint64_t seed = 1;
    size_t max_connections = 1024;  // more wait to be accepted
  };

  // UNAVAILABLE when the address cannot be bound.
  static StatusOr<std::unique_ptr<FaultProxy>> Start(const Options& options);
  ~FaultProxy();  // closes all connections

  const std::string& address() const { return address_; }  // with the real port

  // Of the connections there are and those to come. A connection that lost bytes in `direction` is reset when
  // they are to pass again.
  void SetFaults(Direction direction, const Faults& faults);
  Faults faults(Direction direction);
  void Arm(Direction direction, const Cut& cut);  // in place of an earlier one
  void HalfClose(Direction direction);            // of each connection there is; see ProxiedConnection
  void Reset();                                   // all connections there are
  // While refusing nobody listens; the port stays this proxy's.
  Status SetRefusing(bool is_refusing);
  Status Heal();  // no faults, no cuts, not refusing
  ProxyCounters counters();

 private:
  class Server;
  explicit FaultProxy(std::unique_ptr<Server> server);

  const std::unique_ptr<Server> server_;
  const std::string address_;
};

}  // namespace terrace
