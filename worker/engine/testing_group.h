// Ranks of a group as threads of one process, for tests: GroupOptions::join of each.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "worker/engine/rank_group.h"
#include "worker/parallel/local_communicator.h"

namespace terrace {

// Outlives its ranks. Each rank joins once.
class TestingGroup {
 public:
  TestingGroup(uint32_t ranks, Duration timeout, uint32_t stages = 1)
      : communicators_(MakeLocalCommunicators(ranks, timeout)), ranks_(ranks), stages_(stages) {}

  GroupOptions OptionsOf(uint32_t rank) {
    return {.rank = rank, .ranks = ranks_, .stages = stages_, .join = [this, rank](const RankTraits& traits) {
              std::lock_guard lock(mutex_);
              traits_.push_back(traits);
              return StatusOr<std::unique_ptr<RankGroup>>(
                  std::make_unique<Rank>(*this, std::move(communicators_[rank])));
            }};
  }
  std::vector<RankTraits> traits() {
    std::lock_guard lock(mutex_);
    return traits_;
  }

 private:
  class Rank : public RankGroup {
   public:
    Rank(TestingGroup& group, std::unique_ptr<Communicator> communicator)
        : group_(group), communicator_(std::move(communicator)) {}
    ~Rank() override { group_.Leave(); }
    Communicator& communicator() override { return *communicator_; }
    Status AwaitAll() override { return group_.AwaitAll(); }
    Status FindLost() override { return group_.FindLost(); }

   private:
    TestingGroup& group_;
    const std::unique_ptr<Communicator> communicator_;
  };

  Status AwaitAll() {
    std::unique_lock lock(mutex_);
    const uint64_t round = ++arrived_;
    const uint64_t all = (round + ranks_ - 1) / ranks_ * ranks_;  // that have arrived when the round is over
    changed_.notify_all();
    changed_.wait(lock, [&] { return arrived_ >= all || has_left_; });
    return arrived_ >= all ? Status() : Unavailable("a rank has left");
  }
  Status FindLost() {
    std::lock_guard lock(mutex_);
    return has_left_ ? Unavailable("a rank has left") : Status();
  }
  void Leave() {
    std::lock_guard lock(mutex_);
    has_left_ = true;
    changed_.notify_all();
  }

  std::vector<std::unique_ptr<Communicator>> communicators_;  // until they are taken
  const uint32_t ranks_, stages_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<RankTraits> traits_;  // GUARDED_BY(mutex_)
  uint64_t arrived_ = 0;            // GUARDED_BY(mutex_)
  bool has_left_ = false;           // GUARDED_BY(mutex_)
};

}  // namespace terrace
