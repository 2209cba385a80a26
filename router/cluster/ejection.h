// Which replicas of one tier get no requests because their calls keep failing. A state machine: times come as
// arguments, and it knows neither calls nor clocks. One thread at a time (the cluster's).
//
// So many failures in a row eject a replica, or among its last calls; each time it is ejected again twice as
// long, up to a limit. For as long as its last ejection that it stays in, one doubling is forgotten. When its
// time is over it is on trial: the first failure ejects it again, the first success makes it as good as any.
//
// Only a share of the tier's replicas is ejected at once (rounded down, but one may always be), and never the
// last one that takes requests: beyond that a replica that fails stays in.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "router/cluster/cluster_view.h"

namespace terrace {

// Why the end of a call is the replica's fault, one of kFaults; "" when it is not: a success, a client's
// error, a deadline, a full inbox, a model's numbers, a worker that drains or was replaced.
inline constexpr std::string_view kFaults[] = {"unavailable", "unknown", "internal", "protocol"};
std::string_view FaultOf(const Status& status);
// `status` of a call that was lost with others, when what they shared broke: the replica has failed once,
// which another one of them tells. FaultOf has none for it; all else is as it was.
Status CountedAlready(Status status);

struct EjectionOptions {
  static constexpr uint32_t kMostWindowCalls = 64;

  uint32_t consecutive_failures = 3;               // 0: nobody is ejected
  uint32_t window_failures = 5;                    // of the last window_calls; 0: those in a row count alone
  uint32_t window_calls = 20;                      // 1 to kMostWindowCalls
  Duration first_time = std::chrono::seconds(10);  // then doubling
  Duration longest = std::chrono::seconds(120);
  double max_share = 0.5;

  friend bool operator==(const EjectionOptions&, const EjectionOptions&) = default;
};

class Ejections {
 public:
  // Of the tier's replicas, how many take requests: ready and not ejected.
  struct Counts {
    size_t replicas = 0, in_use = 0;
  };

  explicit Ejections(const EjectionOptions& options) : options_(options) {}

  // The first one after a failure; more need not be told.
  void OnSuccess(ReplicaId replica);
  // For how long this failure ejects the replica, which takes requests; nullopt when it does not.
  // `successes_before`: all of the replica since its failure before this one.
  std::optional<Duration> OnFailure(ReplicaId replica, MonoTime now, const Counts& tier,
                                    uint64_t successes_before);
  // All calls to it failed at once, which says no more than that: its failures do not count, and it is let in
  // on trial when it is back.
  void OnConnectionLost(ReplicaId replica, MonoTime now);
  // Those whose time is over, or all: on trial from now on.
  std::vector<ReplicaId> EndDue(MonoTime now) { return EndThoseUntil(now, now); }
  std::vector<ReplicaId> EndAll(MonoTime now) { return EndThoseUntil(MonoTime::max(), now); }
  void Forget(ReplicaId replica);  // its past too
  bool IsEjected(ReplicaId replica) const;
  size_t ejected() const { return ejected_; }

 private:
  struct Record {
    uint32_t failures = 0;                // in a row
    uint64_t window = 0;                  // its last calls, the last one's bit 0: 1 for a failure
    uint32_t doublings = 0;               // of the next ejection
    std::optional<MonoTime> until = {};   // while it is ejected
    std::optional<MonoTime> let_in = {};  // the last time
    bool is_on_trial = false;
  };

  Duration TimeAfter(uint32_t doublings) const;
  void ForgetDoublings(Record& record, MonoTime now) const;
  bool IsTooMany(const Record& record) const;
  bool IsOneMoreAllowed(const Counts& tier) const;
  void End(Record& record, MonoTime now);
  std::vector<ReplicaId> EndThoseUntil(MonoTime last, MonoTime now);

  const EjectionOptions options_;
  std::map<ReplicaId, Record> records_;  // of replicas that failed
  size_t ejected_ = 0;
};

}  // namespace terrace
