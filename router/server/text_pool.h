// Threads for requests whose text is long: to tokenize it takes milliseconds, for which neither the HTTP
// listener's threads nor gRPC's, which also hear what workers say, may stand still. Thread-safe.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

namespace terrace {

class TextPool {
 public:
  TextPool(size_t threads, size_t max_waiting);
  ~TextPool();  // runs what waits

  bool Post(std::function<void()> task);  // false when too many wait
  size_t size() const;                    // that wait or run

 private:
  void Run(const std::stop_token& stop);

  const size_t max_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<std::function<void()>> tasks_;  // GUARDED_BY(mutex_)
  size_t running_ = 0;                       // GUARDED_BY(mutex_)
  std::vector<std::jthread> threads_;        // last: they join before what they use dies
};

}  // namespace terrace
