// One connection through a FaultProxy: two sockets, with a FaultyFlow each way. Kept alive by what its
// sockets and timers wait for, until it is closed; its proxy may close it. Everything runs on the proxy's
// thread.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>

#include "tests/chaos/faults.h"
#include "tests/chaos/faulty_flow.h"

namespace terrace {

class ProxiedConnection : public std::enable_shared_from_this<ProxiedConnection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  struct Shared {  // by all connections of a proxy; outlives them
    PerDirection<std::optional<Cut>> cuts = {};
    ProxyCounters counters = {};
    std::function<void(uint64_t number)> on_closed = {};  // once each
  };

  // Its draws are a function of `seed` and `number`.
  ProxiedConnection(Shared& shared, Socket client, uint64_t seed, uint64_t number);

  void Start(const boost::asio::ip::tcp::endpoint& server);  // once
  // A direction that lost bytes and is to pass them again is a reset: no stream goes on behind a hole.
  void SetFaults(Direction direction, const Faults& faults);
  void HalfClose(
      Direction direction);  // as if the sender of the direction had ended; what it sends is dropped
  void Reset();              // both sides see a reset
  void Close();              // idempotent, like Reset

 private:
  struct Line {  // one direction
    Line(Direction of, Socket& source, Socket& sink, uint64_t seed, uint64_t stream)
        : direction(of), from(source), to(sink), flow(seed, stream), timer(source.get_executor()) {}
    const Direction direction;
    Socket &from, &to;  // the connection's own
    FaultyFlow flow;
    boost::asio::steady_timer timer;
    bool awaits_read = false, awaits_write = false, awaits_timer = false;
    bool is_source_over = false;
  };

  Line& LineOf(Direction direction) { return direction == Direction::kToServer ? to_server_ : to_client_; }
  void Pump(Line& line);
  void Read(Line& line);
  void OnReadable(Line& line);
  void OnSourceOver(Line& line, bool with_reset);
  void Write(Line& line);
  bool Send(Line& line, std::string_view bytes);
  void WaitUntil(Line& line, MonoTime at);
  void End(Line& line);
  void CutOff(Direction direction);

  Shared& shared_;
  const uint64_t number_;
  Socket client_, server_;
  Line to_server_, to_client_;
  boost::asio::steady_timer linger_timer_;
  bool is_connected_ = false;  // to the server too
  bool is_lingering_ = false;  // both sides were told the end: what they still send is dropped
  bool is_closed_ = false;
};

}  // namespace terrace
