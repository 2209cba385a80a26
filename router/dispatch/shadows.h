// Gives some requests to tiers that did not answer them, when all has been said to their clients:
//
// - A request that a smaller tier of its policy answered, to the last tier too: the two answers are compared,
//   and a DriftWindow says whether smaller tiers still agree with the last one. That gets the answer as a
//   draft, so a pair costs little where it agrees.
// - Where the policy has a file of records, any request to every tier, one after the other, each with the
//   answer before its own as a draft (which changes none of its bits): a Record is made of what they said,
//   right where it agrees with the last one's. The draw knows nothing of who answered the client, nor whether
//   anybody did, so that the records are a fair sample but for those that were dropped; and the pair above is
//   two of these answers.
//
// Greedy requests for one answer alone, as drawn ones differ anyway. What is compared are the texts as
// clients are shown them; of an answer that was cut off by its length, as far as it goes.
//
// A shadow request has no ticket and no client: it counts for no tenant, is billed to nobody, and is begun by
// the housekeeper, when nobody waits for the tier; it is ended when somebody does. What cannot be begun at
// once is forgotten, and so is a suspect (poison.h): a worker that dies under a shadow counts as one that
// dies under the request. Once a policy has drifted that is so for the life of this object.
//
// Part of the DispatchState; kept alive by its calls too, which may end after all else is gone: from Close on
// nothing outside is touched. Thread-safe; files are the housekeeper's.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/hash.h"
#include "router/dispatch/dispatcher.h"
#include "router/dispatch/draft.h"
#include "router/dispatch/poison.h"
#include "router/dispatch/prompt.h"
#include "router/dispatch/tier_answer.h"
#include "router/tier/drift.h"
#include "router/tier/records.h"
#include "router/tier/records_file.h"

namespace terrace {

class CancelSlot;
struct DispatchState;

class Shadows : public std::enable_shared_from_this<Shadows> {
 public:
  Shadows(const DispatcherParts& parts, Quarantine& quarantine);

  // The last tier alone is to answer. `entry` is one of the catalog's.
  bool HasDrifted(const CatalogEntry& entry) const;
  // How a request of a policy ended.
  struct Ended {
    const RequestPtr& request;
    std::span<const EncodedPrompt> prompts = {};  // that are known
    size_t tier = 0;                              // that was asked last
    const TierAnswer* answer = nullptr;  // what it said, to be compared with the last tier's; or none
    bool is_cut = false;                 // that, by its length
  };
  // Cheap, unless the request is drawn.
  void Offer(const CatalogEntry& entry, const Ended& ended);
  // Begins what was offered, ends what is in the way, writes records. Not beside itself or Close, nor after
  // that.
  void Housekeep(DispatchState& state);
  // Cancels all; waits for nothing.
  void Close();

 private:
  class Call;
  struct Watched {  // a policy
    explicit Watched(const CatalogEntry& of);
    const CatalogEntry& entry;
    std::atomic<uint64_t> seen = 0;  // requests that could be drawn
    std::atomic<bool> has_drifted = false;
    std::atomic<bool> takes_records = false;  // the file there is
    std::optional<RecordsFile> records;       // the housekeeper's, as the next
    bool is_unwritten = false;                // the last record; that has been logged
    DriftWindow window;                       // GUARDED_BY(mutex_)
    uint32_t in_flight = 0;                   // GUARDED_BY(mutex_): jobs
  };
  struct Said {  // by a tier
    Draft answer = {};
    bool is_cut = false;  // by its length
    // Not of what a client was answered:
    RecordedTier tier = {};
    uint32_t vocab_size = 0;
    RecordedAnswer record = {};
  };
  struct Job {
    Watched* policy = nullptr;  // lives as long as the Shadows
    RequestPtr request = {};
    std::vector<EncodedPrompt> prompts = {};
    bool is_recorded = false;
    std::span<const size_t> left = {};   // tiers to be asked, of the policy's
    std::vector<Said> said = {};         // in the order of the policy's tiers, the last tier's last
    std::optional<size_t> watched = {};  // of `said`: what a client was answered, of a smaller tier
  };
  struct CallEnd {
    Job job = {};
    Status status = {};    // CANCELLED: it gave way
    double agreement = 0;  // of a pair, when it is OK
  };
  struct Running {
    size_t tier = 0;
    std::shared_ptr<CancelSlot> slot = {};
    ReplicaId replica = 0;
    std::string instance = {};
    Hash128 fingerprint = {};  // RequestFingerprint
  };

  static StatusOr<PromptPtr> PromptOf(const Job& job, const ClusterView& view, const TierView& tier);
  static StatusOr<std::vector<double>> AgreementsOf(const Job& job);
  // Takes the job when that is OK.
  Status Begin(DispatchState& state, Job& job);
  // `death` is its worker's, if it died.
  void OnDone(uint64_t id, CallObserver& observer, WorkerDeath death, CallEnd end);
  void Lose(const Job& job, bool has_failed);
  void Compare(Watched& policy, double agreement);
  void Finish(const Job& job);
  void Write(const Job& job, const std::vector<double>& agreements);
  void OnWritten(Watched& policy, const Status& status);

  const DispatcherParts parts_;                     // not touched after Close
  Quarantine& quarantine_;                          // nor is this
  std::map<const CatalogEntry*, Watched> watched_;  // those with a shadow; not changed after construction
  std::mutex mutex_;
  std::vector<Job> offered_;             // GUARDED_BY(mutex_): to go on with
  std::map<uint64_t, Running> running_;  // GUARDED_BY(mutex_)
  uint64_t last_id_ = 0;                 // GUARDED_BY(mutex_)
  bool is_closed_ = false;               // GUARDED_BY(mutex_)
};

}  // namespace terrace
