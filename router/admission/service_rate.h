// How fast a pool of workers finishes work while requests wait for it. Pure; one thread at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include "base/clock.h"

namespace terrace {

class ServiceRate {
 public:
  // Requests began to wait: what was finished in quieter times says nothing, and neither does the time until
  // the first of those is done that run now.
  void Restart() {
    done_.clear();
    tokens_ = 0;
    since_ = {};
  }
  // One of at most `places` at a time.
  void OnDone(uint64_t tokens, size_t places, MonoTime now) {
    enough_ = std::max(kEnough, places);
    if (since_ == MonoTime()) {
      since_ = now;
      return;
    }
    done_.emplace_back(now, tokens);
    tokens_ += static_cast<double>(tokens);
    if (done_.size() <= 4 * enough_) return;
    since_ = done_.front().first;
    tokens_ -= static_cast<double>(done_.front().second);
    done_.pop_front();
  }
  // Absent while too little has been seen.
  std::optional<double> TokensPerSecond(MonoTime now) const {
    const double seconds = Seconds(now - since_);
    if (done_.size() < enough_ || seconds <= 0) return {};
    return tokens_ / seconds;
  }

 private:
  static constexpr size_t kEnough = 8;
  size_t enough_ = kEnough;
  std::deque<std::pair<MonoTime, uint64_t>> done_;
  double tokens_ = 0;  // of done_
  MonoTime since_ = {};
};

}  // namespace terrace
