#include "worker/parallel/local_communicator.h"

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>

namespace terrace {
namespace {

// What the ranks share. Who waits is woken by every change, as there are few of them.
struct Group {
  explicit Group(uint32_t ranks) : messages(size_t{ranks} * ranks), ended(ranks) {}

  struct Message {
    uint32_t call = 0;
    std::span<const std::byte> data;  // the sender's memory, which waits until it is taken
  };
  std::optional<Message>& At(uint32_t from, uint32_t to) { return messages[from * ended.size() + to]; }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::optional<Message>> messages;  // GUARDED_BY(mutex)
  std::vector<Status> ended;                     // GUARDED_BY(mutex): why, of each rank; OK while it lives
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<Group> group, uint32_t rank, uint32_t ranks, Duration timeout)
      : Communicator(rank, ranks, timeout), group_(std::move(group)) {}
  ~LocalCommunicator() override { Abort(Unavailable("its communicator was destroyed")); }

  void Abort(const Status& why) override {
    std::lock_guard lock(group_->mutex);
    Status& ended = group_->ended[rank()];
    if (ended.ok()) ended = why;
    group_->changed.notify_all();
  }

  Status FindEnded() override {
    std::lock_guard lock(group_->mutex);
    for (uint32_t i = 0; i < ranks(); ++i) {
      if (i != rank() && !group_->ended[i].ok()) return Ended(i, Message(group_->ended[i]));
    }
    return Status();
  }

 private:
  Status Exchange(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                  MonoTime deadline) override {
    std::unique_lock lock(group_->mutex);
    for (const Outgoing& each : outgoing) {
      group_->At(rank(), each.to) = Group::Message{.call = static_cast<uint32_t>(call), .data = each.data};
    }
    group_->changed.notify_all();
    const Status status = TakeAndWait(call, outgoing, incoming, deadline, lock);
    for (const Outgoing& each : outgoing) group_->At(rank(), each.to).reset();  // what was not taken
    return status;
  }

  // Takes what comes in, then waits until all that goes out was taken.
  Status TakeAndWait(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                     MonoTime deadline, std::unique_lock<std::mutex>& lock) {
    for (const Incoming& each : incoming) {
      std::optional<Group::Message>& message = group_->At(each.from, rank());
      RETURN_IF_ERROR(Wait(call, each.from, deadline, lock, [&] { return message.has_value(); }));
      RETURN_IF_ERROR(CheckMessage(each.from, static_cast<Call>(message->call), message->data.size(), call,
                                   each.data.size()));
      if (!each.data.empty()) std::memcpy(each.data.data(), message->data.data(), each.data.size());
      message.reset();
      group_->changed.notify_all();
    }
    for (const Outgoing& each : outgoing) {
      const std::optional<Group::Message>& message = group_->At(rank(), each.to);
      RETURN_IF_ERROR(Wait(call, each.to, deadline, lock, [&] { return !message.has_value(); }));
    }
    return OwnEnd();
  }

  // Until `is_done`, which is up to `peer`.
  template <typename IsDone>
  Status Wait(Call call, uint32_t peer, MonoTime deadline, std::unique_lock<std::mutex>& lock,
              IsDone is_done) {
    const Status& theirs = group_->ended[peer];
    const bool is_over = group_->changed.wait_until(
        lock, deadline, [&] { return is_done() || !theirs.ok() || !OwnEnd().ok(); });
    RETURN_IF_ERROR(OwnEnd());
    if (is_done()) return Status();
    return is_over ? Ended(peer, Message(theirs)) : Missed(peer, call, timeout());
  }

  const Status& OwnEnd() const { return group_->ended[rank()]; }

  const std::shared_ptr<Group> group_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(uint32_t ranks, Duration timeout) {
  const auto group = std::make_shared<Group>(ranks);
  std::vector<std::unique_ptr<Communicator>> out;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    out.push_back(std::make_unique<LocalCommunicator>(group, rank, ranks, timeout));
  }
  return out;
}

}  // namespace terrace
