// What ends a call early, known only after the call has begun. Thread-safe.
#pragma once

#include <mutex>
#include <utility>

#include "router/dispatch/dispatcher.h"

namespace terrace {

class LateCancel {
 public:
  void Set(Dispatcher::CancelCall cancel) {
    {
      std::lock_guard lock(mutex_);
      cancel_ = cancel;
      if (!is_cancelled_) return;
    }
    cancel();
  }
  bool is_cancelled() const {
    std::lock_guard lock(mutex_);
    return is_cancelled_;
  }
  void Cancel() {
    Dispatcher::CancelCall cancel;
    {
      std::lock_guard lock(mutex_);
      is_cancelled_ = true;
      cancel = cancel_;
    }
    if (cancel) cancel();
  }

 private:
  mutable std::mutex mutex_;
  Dispatcher::CancelCall cancel_;  // GUARDED_BY(mutex_)
  bool is_cancelled_ = false;      // GUARDED_BY(mutex_)
};

}  // namespace terrace
