// Memory that many holders share up to a limit, and the lease of one of them. A budget is thread-safe; a
// lease is one thread's at a time. Leases share their budget, so they may outlive whoever made it.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

namespace terrace {

class ByteBudget {
 public:
  explicit ByteBudget(size_t limit) : limit_(limit) {}

  size_t used() const { return used_; }  // never more than the limit

 private:
  friend class ByteLease;

  bool Take(size_t bytes) {
    size_t used = used_;
    do {
      if (bytes > limit_ - used) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes));
    return true;
  }
  void Return(size_t bytes) { used_ -= bytes; }

  const size_t limit_;
  std::atomic<size_t> used_ = 0;
};

// Returns what it holds when it goes.
class ByteLease {
 public:
  ByteLease() = default;  // of no budget: holds nothing, ever
  explicit ByteLease(std::shared_ptr<ByteBudget> budget) : budget_(std::move(budget)) {}
  ~ByteLease() { Resize(0); }
  ByteLease(ByteLease&& other) noexcept
      : budget_(std::move(other.budget_)), bytes_(std::exchange(other.bytes_, 0)) {}
  ByteLease& operator=(ByteLease&& other) noexcept {
    ByteLease taken(std::move(other));  // and then goes with what was held here
    std::swap(budget_, taken.budget_);
    std::swap(bytes_, taken.bytes_);
    return *this;
  }

  // False, with nothing changed, when the budget has less left.
  bool Resize(size_t bytes) {
    if (budget_ == nullptr) return bytes == 0;
    if (bytes > bytes_ && !budget_->Take(bytes - bytes_)) return false;
    if (bytes < bytes_) budget_->Return(bytes_ - bytes);
    bytes_ = bytes;
    return true;
  }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<ByteBudget> budget_;
  size_t bytes_ = 0;
};

}  // namespace terrace
