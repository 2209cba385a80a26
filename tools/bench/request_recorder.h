// Measures one request: the observer that a target reports to, and the record it leaves. Latencies count from
// when the request was meant to be sent, so that a late client or a stalled target hides nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "tools/bench/bench_target.h"
#include "tools/bench/bench_time.h"

namespace terrace {

enum class Outcome : uint8_t { kOk, kCancelled, kFailed };

struct RequestRecord {
  uint64_t index = 0;
  uint32_t prompt_tokens = 0, wanted_tokens = 0;
  bool is_cut = false;
  MonoTime intended, sent, first_token, ended;  // first_token: when tokens > 0
  uint32_t tokens = 0;                          // that arrived
  // Between one token and the next, for all but the first. Tokens that arrive together are 0 apart.
  std::vector<Duration> gaps;
  Outcome outcome = Outcome::kOk;  // kCancelled: by us
  BenchEnd end;
};

// Where the recorders of a run leave their records. Thread-safe; shared by all, for a target may report after
// the run gave it up.
class RecordBox {
 public:
  explicit RecordBox(std::shared_ptr<BenchTime> time) : time_(std::move(time)) {}

  BenchTime& time() const { return *time_; }
  void CountTokens(uint32_t count) { tokens_.fetch_add(count, std::memory_order_relaxed); }
  uint64_t tokens() const { return tokens_.load(std::memory_order_relaxed); }  // of all requests so far
  void Add(RequestRecord record);                                              // wakes the run
  std::vector<RequestRecord> TakeAll();

 private:
  const std::shared_ptr<BenchTime> time_;
  std::atomic<uint64_t> tokens_ = 0;
  std::mutex mutex_;
  std::vector<RequestRecord> records_;  // GUARDED_BY(mutex_)
};

class RequestRecorder : public BenchObserver {
 public:
  // `record` has what is known before the request is sent. Cancels after `cancel_after` tokens.
  RequestRecorder(RequestRecord record, std::optional<uint32_t> cancel_after, std::shared_ptr<RecordBox> box)
      : record_(std::move(record)), cancel_after_(cancel_after), box_(std::move(box)) {}

  bool OnTokens(uint32_t count) override;
  void OnEnd(const BenchEnd& end) override;

  // From now on tokens are refused, and an error is what we asked for. Any thread.
  void SetCancelled() { is_cancelled_ = true; }

 private:
  RequestRecord record_;
  const std::optional<uint32_t> cancel_after_;
  const std::shared_ptr<RecordBox> box_;
  MonoTime last_token_;
  bool has_refused_ = false;  // tokens, so that an answer the target completed is not whole
  std::atomic<bool> is_cancelled_ = false;
};

}  // namespace terrace
