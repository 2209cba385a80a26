// What the ranks of a group tell each other: every rank makes the same calls in the same order, and each call
// returns when this rank has what it needs and no longer lends its memory. Implementations:
// LocalCommunicator (threads of one process), TcpCommunicator and GlooCommunicator (processes),
// NcclCommunicator (GPUs), and over another one SubCommunicator (some of its ranks). They only carry
// messages; what is added in which order is here, so that it is the same for all.
//
// One thread at a time makes the calls; Abort is for any thread. Every call has the group's timeout. A rank
// that does not take part in time gives DEADLINE_EXCEEDED, one that ended UNAVAILABLE, both with its number;
// one that makes another call, or sends another number of bytes, INVALID_ARGUMENT at the ranks that hear of
// it. After an error this rank has ended: its calls give the same error, and the other ranks' UNAVAILABLE
// instead of a wait for it. A group is not repaired but made anew.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace terrace {

class Communicator {
 public:
  // Up to here a sum takes one message to each rank, of all values, rather than two of a share: what counts
  // is how often ranks wait for each other.
  static constexpr size_t kAtOnceBytes = 64 << 10;

  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  uint32_t rank() const { return rank_; }
  uint32_t ranks() const { return ranks_; }
  Duration timeout() const { return timeout_; }

  // values = the sum of all ranks' values, as AddTree over the ranks has it: the same bits on each, of the
  // order of the ranks alone.
  Status AllReduceSum(std::span<float> values);
  // Every rank's `mine`, of equal sizes, in the order of the ranks.
  Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all);
  // `data` of rank `root` to all.
  Status Broadcast(std::span<std::byte> data, uint32_t root);
  // To another rank, which calls Receive; may return before it does.
  Status Send(std::span<const std::byte> data, uint32_t to);
  Status Receive(std::span<std::byte> data, uint32_t from);
  struct Outgoing {
    uint32_t to = 0;
    std::span<const std::byte> data;
  };
  struct Incoming {
    uint32_t from = 0;
    std::span<std::byte> data;
  };
  // A Send and a Receive at once, or one of them: ranks in a row pass on what they have without a wait for
  // those behind them.
  Status SendReceive(const std::optional<Outgoing>& outgoing, const std::optional<Incoming>& incoming);
  // Returns when every rank has called it.
  Status Barrier();

  // Ends this rank with the error `why`, the call it is in included; the first one counts. Frees the other
  // ranks, as far as they wait for it. Any thread.
  virtual void Abort(const Status& why) = 0;

  // UNAVAILABLE, with its number, when another rank is known to have ended; does not wait to hear of it. For
  // a rank that is about to end, to say whom it is about: no call but Abort may follow.
  virtual Status FindEnded() = 0;

 protected:
  enum class Call : uint32_t { kAllReduceSum, kAllGather, kBroadcast, kSend, kBarrier };
  static std::string_view Name(Call call);
  Communicator(uint32_t rank, uint32_t ranks, Duration timeout);

  // The errors of whoever takes part, worded alike by all implementations.
  static Status Missed(uint32_t rank, Call call, Duration timeout);
  static Status Ended(uint32_t rank, std::string_view why);
  static Status CheckMessage(uint32_t from, Call got, uint64_t got_bytes, Call wanted, uint64_t wanted_bytes);

  // Sends and receives all, at most one message a direction and peer, in any order of time: a message goes
  // when its receiver asks for it. Returns when none of the memory is used any more. Not called after it
  // failed.
  virtual Status Exchange(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                          MonoTime deadline) = 0;

  // An exchange of `other`, on whose connections an implementation agrees with its peers.
  static Status ExchangeOver(Communicator& other, Call call, std::span<const Outgoing> outgoing,
                             std::span<const Incoming> incoming, MonoTime deadline) {
    return other.Run(call, outgoing, incoming, deadline);
  }

 private:
  Status Run(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
             MonoTime deadline);
  Status GatherAs(Call call, std::span<const std::byte> mine, std::span<std::byte> all, MonoTime deadline);
  Status SumAtOnce(std::span<float> values, MonoTime deadline);
  Status SumInShares(std::span<float> values, MonoTime deadline);
  MonoTime Deadline() const { return RealClock().Now() + timeout_; }

  const uint32_t rank_, ranks_;
  const Duration timeout_;
  Status error_;                // of the first call that failed
  std::vector<float> scratch_;  // other ranks' values; grows to the largest sum and stays
};

}  // namespace terrace
