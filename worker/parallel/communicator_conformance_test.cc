#include "worker/parallel/communicator_conformance.h"

#include "worker/parallel/fake_nccl.h"
#include "worker/parallel/gloo_communicator.h"
#include "worker/parallel/local_communicator.h"
#include "worker/parallel/nccl_communicator.h"

namespace terrace {
namespace {

Group MakeGlooGroup(uint32_t ranks, Duration timeout) {
  Board board(ranks);
  Group group(ranks);
  OnEachRank(ranks, [&](uint32_t rank) {
    auto made = ConnectGloo({.rank = rank, .ranks = ranks, .timeout = timeout, .connect_timeout = kLong},
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

TEST(ConnectGloo, AnErrorOfTheRendezvousIsItsError) {
  const auto status = ConnectGloo({.rank = 0, .ranks = 2}, [](const std::string&) {
                        return StatusOr<std::vector<std::string>>(NotFound("no leader"));
                      }).status();
  EXPECT_EQ(status, NotFound("no leader"));
}

TEST(ConnectGloo, AnAddressThatIsNoneIsAnErrorThatNamesTheRank) {
  for (const char* const address : {"", "x", "0123456789"}) {
    const auto status = ConnectGloo({.rank = 0, .ranks = 2}, [&](const std::string& mine) {
                          return std::vector<std::string>{mine, address};
                        }).status();
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_NE(Message(status).find("rank 1"), std::string::npos) << status;
  }
}

TEST(ConnectGloo, ARendezvousOfAnotherNumberOfRanksIsAnError) {
  const auto status = ConnectGloo({.rank = 0, .ranks = 2}, [](const std::string& mine) {
                        return std::vector<std::string>{mine, mine, mine};
                      }).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
}

// NCCL itself, which needs a GPU for each rank: tests/gpu/nccl_gpu_test.cc.
INSTANTIATE_TEST_SUITE_P(All, EveryCommunicator,
                         testing::Values(Implementation{"local", MakeLocalCommunicators},
                                         Implementation{"gloo", MakeGlooGroup},
                                         Implementation{"nccl_of_the_test", MakeFakeNcclGroup}),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace terrace
