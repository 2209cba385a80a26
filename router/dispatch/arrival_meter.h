// How fast the tokens of one attempt come in. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "base/clock.h"

namespace terrace {

class ArrivalMeter {
 public:
  struct Measured {
    double seconds = 0;
    uint32_t tokens = 0;
  };

  // Tokens have come, together. The first ones tell nothing, and neither do those that are not `telling`:
  // they were drafted, so a worker computed them at once, or were not read for a while.
  void OnTokens(size_t tokens, bool telling, MonoTime now) {
    if (last_.has_value() && telling) {
      measured_.seconds += Seconds(now - *last_);
      measured_.tokens += static_cast<uint32_t>(tokens);
    }
    last_ = now;
  }
  uint32_t tokens() const { return measured_.tokens; }  // since Take
  Measured Take() { return std::exchange(measured_, {}); }

 private:
  std::optional<MonoTime> last_;
  Measured measured_;
};

}  // namespace terrace
