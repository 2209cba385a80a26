#include "worker/parallel/communicator.h"

#include <algorithm>
#include <cstring>

#include "worker/parallel/index_range.h"
#include "worker/parallel/tree_sum.h"

namespace terrace {
namespace {

std::span<const std::byte> BytesOf(std::span<const float> values) { return std::as_bytes(values); }
std::span<std::byte> BytesOf(std::span<float> values) { return std::as_writable_bytes(values); }

}  // namespace

Communicator::Communicator(uint32_t rank, uint32_t ranks, Duration timeout)
    : rank_(rank), ranks_(ranks), timeout_(timeout) {
  CHECK(rank < ranks, "rank ", rank, " of ", ranks);
  CHECK(timeout > Duration(0), "a group without a timeout");
}

std::string_view Communicator::Name(Call call) {
  switch (call) {
    case Call::kAllReduceSum:
      return "all-reduce";
    case Call::kAllGather:
      return "all-gather";
    case Call::kBroadcast:
      return "broadcast";
    case Call::kSend:
      return "send";
    case Call::kBarrier:
      return "barrier";
  }
  return "unknown call";
}

Status Communicator::Missed(uint32_t rank, Call call, Duration timeout) {
  return DeadlineExceeded("rank ", rank, " did not take part in ", Name(call), " within ", Seconds(timeout),
                          " s");
}

Status Communicator::Ended(uint32_t rank, std::string_view why) {
  return Unavailable("rank ", rank, " has ended: ", why);
}

Status Communicator::CheckMessage(uint32_t from, Call got, uint64_t got_bytes, Call wanted,
                                  uint64_t wanted_bytes) {
  if (got == wanted && got_bytes == wanted_bytes) return Status();
  return InvalidArgument("rank ", from, " is in ", Name(got), " of ", got_bytes, " bytes, this one in ",
                         Name(wanted), " of ", wanted_bytes);
}

Status Communicator::Run(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                         MonoTime deadline) {
  if (!error_.ok()) return error_;
  error_ = Exchange(call, outgoing, incoming, deadline);
  if (!error_.ok()) Abort(error_);
  return error_;
}

Status Communicator::GatherAs(Call call, std::span<const std::byte> mine, std::span<std::byte> all,
                              MonoTime deadline) {
  CHECK(all.size() == mine.size() * ranks_, all.size(), " bytes for ", ranks_, " times ", mine.size());
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  for (uint32_t other = 0; other < ranks_; ++other) {
    const std::span<std::byte> place = all.subspan(other * mine.size(), mine.size());
    if (other != rank_) {
      outgoing.push_back({.to = other, .data = mine});
      incoming.push_back({.from = other, .data = place});
    } else if (!mine.empty()) {
      std::memmove(place.data(), mine.data(), mine.size());
    }
  }
  return Run(call, outgoing, incoming, deadline);
}

Status Communicator::AllGather(std::span<const std::byte> mine, std::span<std::byte> all) {
  return GatherAs(Call::kAllGather, mine, all, Deadline());
}

Status Communicator::Barrier() { return GatherAs(Call::kBarrier, {}, {}, Deadline()); }

Status Communicator::Broadcast(std::span<std::byte> data, uint32_t root) {
  CHECK(root < ranks_, "root ", root, " of ", ranks_);
  if (root != rank_) {
    const Incoming incoming{.from = root, .data = data};
    return Run(Call::kBroadcast, {}, {&incoming, 1}, Deadline());
  }
  std::vector<Outgoing> outgoing;
  for (uint32_t other = 0; other < ranks_; ++other) {
    if (other != rank_) outgoing.push_back({.to = other, .data = data});
  }
  return Run(Call::kBroadcast, outgoing, {}, Deadline());
}

Status Communicator::Send(std::span<const std::byte> data, uint32_t to) {
  return SendReceive(Outgoing{.to = to, .data = data}, std::nullopt);
}

Status Communicator::Receive(std::span<std::byte> data, uint32_t from) {
  return SendReceive(std::nullopt, Incoming{.from = from, .data = data});
}

Status Communicator::SendReceive(const std::optional<Outgoing>& outgoing,
                                 const std::optional<Incoming>& incoming) {
  const auto is_other = [this](uint32_t rank) { return rank < ranks_ && rank != rank_; };
  std::span<const Outgoing> to;
  std::span<const Incoming> from;
  if (outgoing.has_value()) {
    CHECK(is_other(outgoing->to), "rank ", rank_, " sends to ", outgoing->to, " of ", ranks_);
    to = {&*outgoing, 1};
  }
  if (incoming.has_value()) {
    CHECK(is_other(incoming->from), "rank ", rank_, " receives from ", incoming->from, " of ", ranks_);
    from = {&*incoming, 1};
  }
  return Run(Call::kSend, to, from, Deadline());
}

Status Communicator::AllReduceSum(std::span<float> values) {
  return values.size_bytes() <= kAtOnceBytes ? SumAtOnce(values, Deadline())
                                             : SumInShares(values, Deadline());
}

// Every rank gets all values of all and adds them up itself.
Status Communicator::SumAtOnce(std::span<float> values, MonoTime deadline) {
  const size_t count = values.size();
  scratch_.resize(std::max(scratch_.size(), count * ranks_));
  const std::span<float> all = std::span(scratch_).first(count * ranks_);
  RETURN_IF_ERROR(
      GatherAs(Call::kAllReduceSum, BytesOf(std::span<const float>(values)), BytesOf(all), deadline));
  std::vector<float*> parts;
  for (uint32_t rank = 0; rank < ranks_; ++rank) parts.push_back(all.data() + rank * count);
  AddTree(parts, 0, count);
  std::copy_n(parts[0], count, values.data());
  return Status();
}

// Every rank gets its share of all ranks' values, adds it up, and sends the sum to all.
Status Communicator::SumInShares(std::span<float> values, MonoTime deadline) {
  const auto share = [&](uint32_t rank) {
    const IndexRange range = ShareOf(values.size(), rank, ranks_);
    return values.subspan(range.begin, range.size());
  };
  const std::span<float> mine = share(rank_);
  scratch_.resize(std::max(scratch_.size(), mine.size() * ranks_));
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  std::vector<float*> parts;
  for (uint32_t other = 0; other < ranks_; ++other) {
    const std::span<float> theirs = std::span(scratch_).subspan(other * mine.size(), mine.size());
    parts.push_back(theirs.data());
    if (other == rank_) {
      std::copy(mine.begin(), mine.end(), theirs.begin());
    } else {
      outgoing.push_back({.to = other, .data = BytesOf(std::span<const float>(share(other)))});
      incoming.push_back({.from = other, .data = BytesOf(theirs)});
    }
  }
  RETURN_IF_ERROR(Run(Call::kAllReduceSum, outgoing, incoming, deadline));
  AddTree(parts, 0, mine.size());
  std::copy_n(parts[0], mine.size(), mine.data());
  for (Outgoing& each : outgoing) each.data = BytesOf(std::span<const float>(mine));
  for (Incoming& each : incoming) each.data = BytesOf(share(each.from));
  return Run(Call::kAllReduceSum, outgoing, incoming, deadline);
}

}  // namespace terrace
