// A file descriptor that closes itself, and the wait for several.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <span>
#include <utility>

#include "base/clock.h"

namespace terrace {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}  // owned from now on; -1: none
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }

  int number() const { return number_; }
  bool is_open() const { return number_ >= 0; }

 private:
  int number_ = -1;
};

// poll(2): waits until one of `set` has what it is asked for, or `wait` is over, and not at all where it was
// over before. How many have; -1 with errno (EINTR: a signal came).
inline int Poll(std::span<pollfd> set, Duration wait) {
  const timespec left = TimespecOf(wait);
  return ppoll(set.data(), set.size(), &left, nullptr);
}

}  // namespace terrace
