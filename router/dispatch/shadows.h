// Watches whether the answers of calibrated policies' smaller tiers still agree with their last tier's: some
// requests that a smaller tier answered are given to the last tier too, when all of the answer has been said,
// and the two answers are compared (DriftWindow). Greedy requests for one answer alone, as drawn ones differ
// anyway. The last tier gets the answer as a draft, so a pair costs little where it agrees.
//
// What is compared are the texts as clients are shown them; of an answer that was cut off by its length, as
// far as it goes.
//
// A shadow request has no ticket and no client: it counts for no tenant, is billed to nobody, and is begun by
// the housekeeper, when nobody waits for the tier; it is ended when somebody does. What cannot be begun at
// once is forgotten, and so is a suspect (poison.h): a worker that dies under a shadow counts as one that
// dies under the request. Once a policy has drifted that is so for the life of this object.
//
// Part of the DispatchState; kept alive by its calls too, which may end after all else is gone: from Close on
// nothing outside is touched. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/hash.h"
#include "router/dispatch/dispatcher.h"
#include "router/dispatch/draft.h"
#include "router/dispatch/poison.h"
#include "router/dispatch/prompt.h"
#include "router/dispatch/tier_answer.h"
#include "router/tier/drift.h"

namespace terrace {

class CancelSlot;
struct DispatchState;

class Shadows : public std::enable_shared_from_this<Shadows> {
 public:
  Shadows(const DispatcherParts& parts, Quarantine& quarantine);

  // The last tier alone is to answer. `entry` is one of the catalog's.
  bool HasDrifted(const CatalogEntry& entry) const;
  // `answer` is over, and of a smaller tier. Cheap, unless the request is drawn.
  void Offer(const CatalogEntry& entry, const RequestPtr& request, const TierAnswer& answer, AnswerEnd end);
  // Begins what was offered, ends what is in the way. Not beside or after Close.
  void Housekeep(DispatchState& state);
  // Cancels all; waits for nothing.
  void Close();

 private:
  class Call;
  struct Watched {  // a policy
    explicit Watched(const CatalogEntry& of) : entry(of), window(*of.shadow) {}
    const CatalogEntry& entry;
    std::atomic<uint64_t> seen = 0;  // requests that could be drawn
    std::atomic<bool> has_drifted = false;
    DriftWindow window;      // GUARDED_BY(mutex_)
    uint32_t in_flight = 0;  // GUARDED_BY(mutex_): offered and running
  };
  struct Pair {
    Watched* policy = nullptr;  // lives as long as the Shadows
    RequestPtr request = {};
    PromptPtr prompt = {};  // in the tokens of the answer's tier
    Draft answer = {};
    bool is_cut = false;  // the answer, by its length
  };
  struct Running {
    Watched* policy = nullptr;
    RequestPtr request = {};
    std::shared_ptr<CancelSlot> slot = {};
    ReplicaId replica = 0;
    std::string instance = {};
    Hash128 fingerprint = {};  // RequestFingerprint
  };

  static StatusOr<PromptPtr> PromptOf(const Pair& pair, const TierView& tier);
  Status Begin(DispatchState& state, const Pair& pair);
  // The call is over: how far the answers agree, or why that is not known; CANCELLED: it gave way. `death` is
  // its worker's, if it died.
  void OnDone(uint64_t id, CallObserver& observer, WorkerDeath death, const StatusOr<double>& agreement);
  void Compare(Watched& policy, double agreement);

  const DispatcherParts parts_;                     // not touched after Close
  Quarantine& quarantine_;                          // nor is this
  std::map<const CatalogEntry*, Watched> watched_;  // those with a shadow; not changed after construction
  std::mutex mutex_;
  std::vector<Pair> offered_;            // GUARDED_BY(mutex_)
  std::map<uint64_t, Running> running_;  // GUARDED_BY(mutex_)
  uint64_t last_id_ = 0;                 // GUARDED_BY(mutex_)
  bool is_closed_ = false;               // GUARDED_BY(mutex_)
};

}  // namespace terrace
