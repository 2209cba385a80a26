// One direction of one proxied connection: bytes go in as they were read, and come out as its faults let
// them. A state machine: times come as arguments, and it knows neither sockets nor clocks. Draws are a
// function of (seed, stream, offset of the byte), so the same bytes meet the same faults. One thread at a
// time.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "tests/chaos/faults.h"

namespace terrace {

class FaultyFlow {
 public:
  static constexpr size_t kMostHeld = 256 << 10;  // bytes; more are read only when there is room again

  // What is to be done now.
  struct Next {
    enum class Kind : uint8_t { kNothing, kWait, kSend, kEnd };
    Kind kind = Kind::kNothing;
    std::string_view bytes = {};  // kSend: some of these; valid until the next call
    MonoTime at = {};             // kWait: look again then
  };

  FaultyFlow(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  // For what comes from now on. Without a delay what is held may go at once.
  void Set(const Faults& faults);

  bool wants_more() const;                          // its source should be read
  void Push(std::string_view bytes, MonoTime now);  // was read; nothing is taken behind an end
  void PushEnd(MonoTime now);                       // nothing more will be

  Next Peek(MonoTime now) const;
  void Pop(size_t bytes, MonoTime now);  // the first of Peek's were sent
  void PopEnd() { is_over_ = true; }     // the end was

  bool is_over() const { return is_over_; }  // all was sent, and the end
  bool is_swallowed() const { return faults_.passage == Faults::Passage::kSwallowed; }
  bool has_hole() const { return lost_ > 0 || has_lost_end_; }  // no stream goes on behind one
  uint64_t lost() const { return lost_; }                       // bytes

 private:
  struct Piece {
    std::string bytes = {};
    MonoTime due = {};
  };

  MonoTime NextDue(MonoTime now);
  void Corrupt(std::string& piece) const;

  const uint64_t seed_, stream_;
  Faults faults_;
  std::deque<Piece> held_;
  size_t held_bytes_ = 0;
  size_t sent_ = 0;                       // bytes of the first piece
  uint64_t offset_ = 0;                   // bytes that were read
  uint64_t corruption_begin_ = 0;         // offset at which the corruption was set
  MonoTime last_due_ = MonoTime::min();   // of the last piece: none overtakes another
  MonoTime next_send_ = MonoTime::min();  // as the rate has it
  std::optional<MonoTime> end_ = {};      // when it is due
  bool is_over_ = false, has_lost_end_ = false;
  uint64_t lost_ = 0;
};

}  // namespace terrace
