// What leading a group costs each step beside the model: a GroupExecutor tells the plan to the other ranks
// as workers do it, over --transport on one host, whose models, like its own, do nothing. Each rank is a
// thread. Goal: 100 us.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "worker/engine/group_executor.h"
#include "worker/parallel/socket_group.h"

namespace terrace {
namespace {

constexpr Duration kTimeout = std::chrono::seconds(60);
constexpr size_t kSteps = 2000, kBlockTokens = 16;

constexpr PlanLimits kLimits{
    .blocks = 1, .host_blocks = 0, .block_tokens = kBlockTokens, .context_length = 1, .vocab_size = 2};

class NoModel : public Executor {
 public:
  StepResult Run(const StepPlan&) override { return {}; }
};

// Decodes: `sequences` of `context` tokens, one token each.
void Measure(Transport transport, uint32_t ranks, size_t sequences, size_t context) {
  const auto group = MakeSocketGroup(ranks, kTimeout, transport).value();
  std::vector<std::jthread> followers;
  for (uint32_t rank = 1; rank < ranks; ++rank) {
    followers.emplace_back([&group, rank] {
      NoModel model;
      CHECK(FollowLeader(*group[rank], model, kLimits, nullptr).ok());
    });
  }
  const std::vector<int32_t> token = {1};
  std::vector<BlockTable> tables(sequences, BlockTable(context / kBlockTokens));
  StepPlan plan;
  for (size_t i = 0; i < sequences; ++i)
    plan.sequences.push_back({.id = i, .tokens = token, .blocks = tables[i], .sample = true});
  std::vector<double> seconds;
  {
    GroupExecutor leader(*group[0], std::make_unique<NoModel>());
    for (size_t step = 0; step < kSteps; ++step) {
      const MonoTime begin = RealClock().Now();
      CHECK(leader.Run(plan).device_error.ok());
      seconds.push_back(Seconds(RealClock().Now() - begin));
    }
  }
  std::ranges::sort(seconds);
  std::printf("%6u %10zu %10zu %12.1f %12.1f %12.1f\n", ranks, sequences, context, seconds[kSteps / 10] * 1e6,
              seconds[kSteps / 2] * 1e6, seconds[kSteps * 99 / 100] * 1e6);
  std::fflush(stdout);
}

void Run(Transport transport, const std::vector<uint32_t>& sizes) {
  std::printf("over %s\n", std::string(TransportName(transport)).c_str());
  std::printf("%6s %10s %10s %12s %12s %12s\n", "ranks", "sequences", "context", "us, p10", "us, median",
              "us, p99");
  for (const uint32_t ranks : sizes) {
    for (const size_t sequences : {1, 16, 256}) {
      for (const size_t context : {512, 32768}) Measure(transport, ranks, sequences, context);
    }
  }
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  std::vector<uint32_t> ranks = {2, 4};
  CLI::App app("What leading a group of ranks costs each step");
  app.add_option("--ranks", ranks, "sizes of groups")->delimiter(',');
  std::string transport = "tcp";  // as workers have it by default
  app.add_option("--transport", transport, "tcp or gloo")->check(CLI::IsMember({"tcp", "gloo"}));
  CLI11_PARSE(app, argc, argv);
  std::signal(SIGPIPE, SIG_IGN);  // of Gloo
  terrace::Run(terrace::ParseTransport(transport).value(), ranks);
}
