#include "worker/parallel/sub_communicator.h"

#include <vector>

namespace terrace {
namespace {

class SubCommunicator final : public Communicator {
 public:
  SubCommunicator(Communicator& group, uint32_t first, uint32_t ranks)
      : Communicator(group.rank() - first, ranks, group.timeout()), group_(group), first_(first) {}

  void Abort(const Status& why) override { group_.Abort(why); }
  Status FindEnded() override { return group_.FindEnded(); }

 private:
  Status Exchange(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                  MonoTime deadline) override {
    std::vector<Outgoing> to(outgoing.begin(), outgoing.end());
    std::vector<Incoming> from(incoming.begin(), incoming.end());
    for (Outgoing& each : to) each.to += first_;
    for (Incoming& each : from) each.from += first_;
    return ExchangeOver(group_, call, to, from, deadline);
  }

  Communicator& group_;
  const uint32_t first_;
};

}  // namespace

std::unique_ptr<Communicator> MakeSubCommunicator(Communicator& group, uint32_t first, uint32_t ranks) {
  CHECK(first <= group.rank() && group.rank() - first < ranks && ranks <= group.ranks() - first, "rank ",
        group.rank(), " of ranks ", first, " to ", first + ranks, " of ", group.ranks());
  return std::make_unique<SubCommunicator>(group, first, ranks);
}

}  // namespace terrace
