// What an answer has met with at the tier it is at, and whether it may be tried again there. Knows no calls
// and no clock: times are arguments. One thread at a time.
//
// So many attempts in a row may bring no token. Before its first token an answer never asks a replica twice.
// One that has begun may wait for a replica to go on at, and ask one that failed again after a rest: it may
// be the only one, and come back. An attempt that no worker began with does not count against it then, as it
// costs nobody anything: those have as long as the wait may be.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>

#include "base/clock.h"
#include "base/status.h"
#include "router/cluster/cluster_view.h"
#include "router/dispatch/retry_budget.h"

namespace terrace {

class Failover {
 public:
  // A replica that failed is not asked again for so long, once the answer has begun and unless a token came
  // meanwhile.
  static constexpr Duration kRest = std::chrono::seconds(1);

  // In all, however much each of them brings.
  static constexpr uint32_t kMostAttempts = RetryOptions::kMostAttempts;

  explicit Failover(const RetryOptions& options) : options_(options) {}

  void OnAttempt() {
    ++attempts_;
    has_token_ = false;
  }
  void OnToken();  // of the attempt in progress: the count begins anew
  void OnFailure(ReplicaId replica, const Status& error, bool counts, MonoTime now);

  uint32_t attempts() const { return attempts_; }
  const Status& error() const { return error_; }  // the last one, as the worker gave it; OK: none yet
  bool may_retry() const;
  std::set<ReplicaId> TriedAt(MonoTime now, bool has_begun) const;  // not to be asked
  // Whether an answer that has nobody to ask may wait longer than `now`; the wait begins with the first call.
  bool MayWait(MonoTime now);
  Duration WaitedAt(MonoTime now) const;  // 0: it does not

 private:
  RetryOptions options_;
  uint32_t attempts_ = 0;
  uint32_t fruitless_ = 0;  // attempts in a row that brought no token, of those that count
  bool has_token_ = false;  // the attempt in progress
  std::map<ReplicaId, MonoTime> failed_;
  std::optional<MonoTime> waiting_since_;
  bool is_out_of_patience_ = false;  // of attempts that do not count
  Status error_;
};

}  // namespace terrace
