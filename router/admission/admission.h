// How many requests the router works on at once. A Ticket is a lease: its end gives the place back.
// Thread-safe; the Admission outlives its tickets.
#pragma once

#include <atomic>
#include <cstddef>
#include <utility>

#include "base/status.h"

namespace terrace {

class Admission {
 public:
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)) {}
    Ticket& operator=(Ticket&& other) noexcept {
      std::swap(owner_, other.owner_);
      return *this;
    }
    ~Ticket() {
      if (owner_ != nullptr) owner_->Release();
    }

   private:
    friend class Admission;
    explicit Ticket(Admission* owner) : owner_(owner) {}
    Admission* owner_ = nullptr;  // outlives the ticket
  };

  explicit Admission(size_t max_in_flight) : max_in_flight_(max_in_flight) {}

  // RESOURCE_EXHAUSTED (overloaded) when every place is taken, UNAVAILABLE (draining) after Close.
  StatusOr<Ticket> Admit();
  // Refuses everything from now on; requests in flight are not touched.
  void Close() { is_closed_ = true; }

  size_t in_flight() const { return in_flight_; }

 private:
  void Release() { --in_flight_; }

  const size_t max_in_flight_;
  std::atomic<size_t> in_flight_ = 0;
  std::atomic<bool> is_closed_ = false;
};

}  // namespace terrace
