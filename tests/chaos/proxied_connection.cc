#include "tests/chaos/proxied_connection.h"

#include <array>
#include <chrono>
#include <utility>

#include "base/clock.h"

namespace terrace {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kReadBytes = 16 << 10;
constexpr std::chrono::seconds kLinger(
    5);  // for both sides to hang up, so that neither loses what it was sent

MonoTime Now() { return RealClock().Now(); }

}  // namespace

ProxiedConnection::ProxiedConnection(Shared& shared, Socket client, uint64_t seed, uint64_t number)
    : shared_(shared),
      number_(number),
      client_(std::move(client)),
      server_(client_.get_executor()),
      to_server_(Direction::kToServer, client_, server_, seed, 2 * number),
      to_client_(Direction::kToClient, server_, client_, seed, 2 * number + 1),
      linger_timer_(client_.get_executor()) {}

void ProxiedConnection::Start(const tcp::endpoint& server) {
  server_.async_connect(server, [self = shared_from_this()](error_code failure) {
    if (self->is_closed_) return;
    if (failure) return self->Reset();
    error_code ignored;
    for (Socket* socket : {&self->client_, &self->server_}) {
      socket->non_blocking(true, ignored);
      socket->set_option(tcp::no_delay(true), ignored);
    }
    self->is_connected_ = true;
    self->Pump(self->to_server_);
    self->Pump(self->to_client_);
  });
}

void ProxiedConnection::SetFaults(Direction direction, const Faults& faults) {
  Line& line = LineOf(direction);
  line.flow.Set(faults);
  if (line.flow.has_hole() && !line.flow.is_swallowed()) return Reset();
  line.timer.cancel();  // what was waited for may be due
  Pump(line);
}

void ProxiedConnection::HalfClose(Direction direction) {
  Line& line = LineOf(direction);
  line.flow.PushEnd(Now());
  Pump(line);
}

void ProxiedConnection::Reset() {
  error_code ignored;
  client_.set_option(asio::socket_base::linger(true, 0), ignored);
  server_.set_option(asio::socket_base::linger(true, 0), ignored);
  Close();
}

void ProxiedConnection::Close() {
  if (std::exchange(is_closed_, true)) return;
  to_server_.timer.cancel();
  to_client_.timer.cancel();
  linger_timer_.cancel();
  error_code ignored;
  client_.close(ignored);
  server_.close(ignored);
  shared_.on_closed(number_);
}

void ProxiedConnection::Pump(Line& line) {
  Write(line);
  Read(line);
}

void ProxiedConnection::Read(Line& line) {
  const bool is_wanted = is_lingering_ || line.flow.wants_more();
  if (!is_connected_ || is_closed_ || line.is_source_over || line.awaits_read || !is_wanted) return;
  line.awaits_read = true;
  line.from.async_wait(Socket::wait_read, [self = shared_from_this(), &line](error_code) {
    line.awaits_read = false;
    self->OnReadable(line);
  });
}

void ProxiedConnection::OnReadable(Line& line) {
  // Stalled meanwhile: the bytes stay where they are.
  if (is_closed_ || (!is_lingering_ && !line.flow.wants_more())) return;
  static thread_local std::array<char, kReadBytes> buffer;
  error_code error;
  const size_t bytes = line.from.read_some(asio::buffer(buffer), error);
  if (error && error != asio::error::would_block) {
    OnSourceOver(line, /*with_reset=*/error != asio::error::eof);
  } else if (!is_lingering_) {
    const uint64_t lost_before = line.flow.lost();
    line.flow.Push({buffer.data(), bytes}, Now());
    shared_.counters.lost[line.direction] += line.flow.lost() - lost_before;
  }
  Pump(line);
}

// A reset is passed on as one, unless nothing is.
void ProxiedConnection::OnSourceOver(Line& line, bool with_reset) {
  line.is_source_over = true;
  if (is_lingering_) {
    if (to_server_.is_source_over && to_client_.is_source_over) Close();
  } else if (with_reset && !line.flow.is_swallowed()) {
    Reset();
  } else {
    line.flow.PushEnd(Now());
  }
}

void ProxiedConnection::Write(Line& line) {
  while (is_connected_ && !is_closed_ && !is_lingering_ && !line.awaits_write) {
    const FaultyFlow::Next next = line.flow.Peek(Now());
    switch (next.kind) {
      case FaultyFlow::Next::Kind::kNothing:
        return;
      case FaultyFlow::Next::Kind::kWait:
        return WaitUntil(line, next.at);
      case FaultyFlow::Next::Kind::kEnd:
        return End(line);
      case FaultyFlow::Next::Kind::kSend:
        if (!Send(line, next.bytes)) return;
    }
  }
}

// False when nothing more can be sent now.
bool ProxiedConnection::Send(Line& line, std::string_view bytes) {
  std::optional<Cut>& cut = shared_.cuts[line.direction];
  if (cut.has_value()) bytes = bytes.substr(0, cut->bytes);
  if (bytes.empty()) {
    CutOff(line.direction);
    return false;
  }
  error_code error;
  const size_t sent = line.to.write_some(asio::buffer(bytes.data(), bytes.size()), error);
  if (error == asio::error::would_block) {
    line.awaits_write = true;
    line.to.async_wait(Socket::wait_write, [self = shared_from_this(), &line](error_code) {
      line.awaits_write = false;
      self->Pump(line);
    });
    return false;
  }
  if (error) {
    Reset();
    return false;
  }
  line.flow.Pop(sent, Now());
  shared_.counters.passed[line.direction] += sent;
  if (!cut.has_value()) return true;
  cut->bytes -= sent;
  if (cut->bytes > 0) return true;
  CutOff(line.direction);
  return false;
}

void ProxiedConnection::WaitUntil(Line& line, MonoTime at) {
  if (line.awaits_timer) return;
  line.awaits_timer = true;
  line.timer.expires_at(at);
  line.timer.async_wait([self = shared_from_this(), &line](error_code) {
    line.awaits_timer = false;
    self->Pump(line);
  });
}

void ProxiedConnection::End(Line& line) {
  error_code ignored;
  line.to.shutdown(Socket::shutdown_send, ignored);
  line.flow.PopEnd();
  if (to_server_.flow.is_over() && to_client_.flow.is_over()) Close();
}

// Closing at once, with something unread, would be a reset, which may overtake the bytes that are to arrive.
void ProxiedConnection::CutOff(Direction direction) {
  const bool with_reset = shared_.cuts[direction]->with_reset;
  shared_.cuts[direction].reset();
  if (with_reset) return Reset();
  is_lingering_ = true;
  error_code ignored;
  client_.shutdown(Socket::shutdown_send, ignored);
  server_.shutdown(Socket::shutdown_send, ignored);
  if (to_server_.is_source_over && to_client_.is_source_over) return Close();
  linger_timer_.expires_after(kLinger);
  linger_timer_.async_wait([self = shared_from_this()](error_code cancelled) {
    if (!cancelled) self->Close();
  });
  Read(to_server_);
  Read(to_client_);
}

}  // namespace terrace
