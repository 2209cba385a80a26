#include "worker/parallel/communicator_conformance.h"

#include "worker/parallel/fake_nccl.h"
#include "worker/parallel/local_communicator.h"
#include "worker/parallel/nccl_communicator.h"
#include "worker/parallel/sub_communicator.h"
#include "worker/parallel/transport.h"

namespace terrace {
namespace {

template <Transport kTransport>
Group MakeSocketGroup(uint32_t ranks, Duration timeout) {
  Board board(ranks);
  Group group(ranks);
  OnEachRank(ranks, [&](uint32_t rank) {
    auto made =
        Connect(kTransport, {.rank = rank, .ranks = ranks, .timeout = timeout, .connect_timeout = kLong},
                [&](const std::string& mine) { return board.Tell(rank, mine); });
    CHECK(made.ok(), Message(made.status()));
    group[rank] = *std::move(made);
  });
  return group;
}

Group MakeFakeNcclGroup(uint32_t ranks, Duration timeout) {
  Board board(ranks);
  Group group = MakeLocalCommunicators(ranks, timeout);
  OnEachRank(ranks, [&](uint32_t rank) {
    auto made = ConnectNccl({.nccl = FakeNccl(),
                             .control = std::move(group[rank]),
                             .device = MakeFakeNcclDevice(),
                             .connect_timeout = kLong},
                            [&](const std::string& mine) { return board.Tell(rank, mine); });
    CHECK(made.ok(), Message(made.status()));
    group[rank] = *std::move(made);
  });
  return group;
}

// The first `ranks` of a group that has one rank more, which does nothing.
class OwningSubCommunicator final : public Communicator {
 public:
  OwningSubCommunicator(std::unique_ptr<Communicator> group, std::shared_ptr<Communicator> idle,
                        uint32_t ranks)
      : Communicator(group->rank(), ranks, group->timeout()),
        idle_(std::move(idle)),
        group_(std::move(group)),
        sub_(MakeSubCommunicator(*group_, 0, ranks)) {}

  void Abort(const Status& why) override { sub_->Abort(why); }
  Status FindEnded() override { return sub_->FindEnded(); }

 private:
  Status Exchange(Call call, std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                  MonoTime deadline) override {
    return ExchangeOver(*sub_, call, outgoing, incoming, deadline);
  }

  const std::shared_ptr<Communicator> idle_;
  const std::unique_ptr<Communicator> group_, sub_;
};

Group MakeSubGroup(uint32_t ranks, Duration timeout) {
  Group group = MakeSocketGroup<Transport::kTcp>(ranks + 1, timeout);
  const std::shared_ptr<Communicator> idle = std::move(group.back());
  group.pop_back();
  for (auto& each : group) each = std::make_unique<OwningSubCommunicator>(std::move(each), idle, ranks);
  return group;
}

class EveryTransport : public testing::TestWithParam<Transport> {};

TEST_P(EveryTransport, HasANameThatIsReadBack) {
  EXPECT_EQ(ParseTransport(TransportName(GetParam())).value(), GetParam());
  EXPECT_EQ(Message(ParseTransport("TCP").status()), "\"TCP\", not one of tcp, gloo");
}

TEST_P(EveryTransport, AnErrorOfTheRendezvousIsItsError) {
  const auto status = Connect(GetParam(), {.rank = 0, .ranks = 2}, [](const std::string&) {
                        return StatusOr<std::vector<std::string>>(NotFound("no leader"));
                      }).status();
  EXPECT_EQ(status, NotFound("no leader"));
}

TEST_P(EveryTransport, AnAddressThatIsNoneIsAnErrorThatNamesTheRank) {
  for (const char* const address :
       {"", "x", "0123456789", "terrace-tcp 1 2", "terrace-tcp 1 2 ", "terrace-tcp x 2 127.0.0.1",
        "terrace-tcp 1 99999 127.0.0.1", "terrace-tcp"}) {
    const auto status = Connect(GetParam(), {.rank = 0, .ranks = 2}, [&](const std::string& mine) {
                          return std::vector<std::string>{mine, address};
                        }).status();
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << address;
    EXPECT_NE(Message(status).find("rank 1"), std::string::npos) << status;
  }
}

TEST_P(EveryTransport, ARendezvousOfAnotherNumberOfRanksIsAnError) {
  const auto status = Connect(GetParam(), {.rank = 0, .ranks = 2}, [](const std::string& mine) {
                        return std::vector<std::string>{mine, mine, mine};
                      }).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
}

TEST_P(EveryTransport, AHostThatIsNotThisMachinesIsAnError) {
  for (const char* const host : {"192.0.2.1", "no such host"}) {
    const auto status =
        Connect(GetParam(), {.rank = 0, .ranks = 2, .host = host}, [](const std::string& mine) {
          return std::vector<std::string>{mine, mine};
        }).status();
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
    EXPECT_NE(Message(status).find(host), std::string::npos) << status;
  }
}

// Processes are asked before (group.transport, when they join); whoever is not hears of it all the same.
TEST_P(EveryTransport, ARankWithAnotherOneIsAnError) {
  const Transport other = GetParam() == Transport::kTcp ? Transport::kGloo : Transport::kTcp;
  Board board(2);
  OnEachRank(2, [&](uint32_t rank) {
    const auto status =
        Connect(rank == 0 ? GetParam() : other, {.rank = rank, .ranks = 2}, [&](const std::string& mine) {
          return board.Tell(rank, mine);
        }).status();
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status;
    EXPECT_NE(Message(status).find(Concat("rank ", 1 - rank)), std::string::npos) << status;
  });
}

INSTANTIATE_TEST_SUITE_P(All, EveryTransport, testing::Values(Transport::kTcp, Transport::kGloo),
                         [](const auto& param_info) { return std::string(TransportName(param_info.param)); });

// NCCL itself, which needs a GPU for each rank: tests/gpu/nccl_gpu_test.cc.
INSTANTIATE_TEST_SUITE_P(All, EveryCommunicator,
                         testing::Values(Implementation{"local", MakeLocalCommunicators},
                                         Implementation{"tcp", MakeSocketGroup<Transport::kTcp>},
                                         Implementation{"gloo", MakeSocketGroup<Transport::kGloo>},
                                         Implementation{"part_of_tcp", MakeSubGroup},
                                         Implementation{"nccl_of_the_test", MakeFakeNcclGroup}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace terrace
