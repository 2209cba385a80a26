// What a FaultProxy can be told to do to the connections through it, and what it counts. Values.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace terrace {

enum class Direction : uint8_t { kToServer, kToClient };
inline constexpr std::array kDirections = {Direction::kToServer, Direction::kToClient};

template <typename T>
struct PerDirection {
  T to_server = {}, to_client = {};
  T& operator[](Direction direction) { return direction == Direction::kToServer ? to_server : to_client; }
  const T& operator[](Direction direction) const {
    return direction == Direction::kToServer ? to_server : to_client;
  }
};

// What happens to the bytes of one direction on their way; by default nothing.
struct Faults {
  enum class Passage : uint8_t {
    kOpen,
    kStalled,    // nothing is read or sent on: the sender soon has to wait, and nothing is lost
    kSwallowed,  // what is read is lost, and so is the sender's end: nobody is told anything
  };
  // Flips one bit of byte `first`, counted from when the fault was set or from the connection's beginning,
  // and of every `every`-th byte behind it (0: of that one only).
  struct Corruption {
    uint64_t first = 0, every = 0;
    friend bool operator==(const Corruption&, const Corruption&) = default;
  };

  Passage passage = Passage::kOpen;
  // What is read at once waits for `delay` and a draw from [0, jitter), and for what came before it.
  Duration delay = {}, jitter = {};
  uint64_t bytes_per_second = 0;  // of each connection; 0: no limit
  std::optional<Corruption> corruption = {};
};

// Ends, once, the connection that passes the last of so many bytes of a direction, counted over all
// connections from when it was armed; 0: the one that would pass the next byte. Both sides see an orderly end
// behind what was passed; with a reset they may lose what they have not read.
struct Cut {
  uint64_t bytes = 0;
  bool with_reset = false;
};

struct ProxyCounters {
  uint64_t connections = 0;            // accepted so far
  uint64_t open = 0;                   // of them, now
  PerDirection<uint64_t> passed = {};  // bytes sent on
  PerDirection<uint64_t> lost = {};    // bytes swallowed
};

}  // namespace terrace
