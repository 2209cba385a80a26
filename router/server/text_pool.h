// Threads for requests whose text is long: to tokenize it takes milliseconds, for which neither the HTTP
// listener's threads nor gRPC's, which also hear what workers say, may stand still. Tenants take turns, a
// task each, and who has many waiting keeps nobody else out. Thread-safe.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

namespace terrace {

class TextPool {
 public:
  TextPool(size_t threads, size_t max_waiting);
  ~TextPool();  // runs what waits

  // False when too many wait: max_waiting in all, unless the tenant has less than its share of them.
  bool Post(const std::string& tenant, std::function<void()> task);
  void SetMaxWaiting(size_t max_waiting);  // of what is posted from now on
  size_t size() const;                     // that wait or run
  static bool IsOnThread();                // of a pool

 private:
  struct Line {
    std::string tenant;
    std::deque<std::function<void()>> tasks;  // at least one
  };
  void Run(const std::stop_token& stop);
  std::function<void()> TakeNext();

  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  size_t max_waiting_;                 // GUARDED_BY(mutex_)
  std::deque<Line> lines_;             // GUARDED_BY(mutex_): of the tenants with tasks, the next one's first
  size_t waiting_ = 0, running_ = 0;   // GUARDED_BY(mutex_)
  std::vector<std::jthread> threads_;  // last: they join before what they use dies
};

}  // namespace terrace
