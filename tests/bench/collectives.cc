// What a sum over the ranks of a group costs: AllReduceSum, which adds in a fixed order, among threads, over
// TCP and over Gloo on one host, against Gloo's own all-reduce over TCP, which adds in an order of its own.
// Each rank is a thread; times are those of the clock, as ranks mostly wait for each other.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <functional>
#include <memory>
#include <vector>

#include "gloo/allreduce.h"
#include "gloo/math.h"
#include "gloo/rendezvous/context.h"
#include "gloo/rendezvous/hash_store.h"
#include "gloo/transport/tcp/device.h"
#include "worker/parallel/local_communicator.h"
#include "worker/parallel/on_each_rank.h"
#include "worker/parallel/socket_group.h"

namespace terrace {
namespace {

constexpr Duration kTimeout = std::chrono::seconds(60);
constexpr size_t kRounds = 200, kCounts[] = {4096, 16384, 262144, 2097152};  // floats: 16 KiB to 8 MiB

using Group = std::vector<std::unique_ptr<Communicator>>;
using Sum = std::function<void(uint32_t rank, std::vector<float>& values)>;

Sum SumOf(const Group& group) {
  return
      [&group](uint32_t rank, std::vector<float>& values) { CHECK(group[rank]->AllReduceSum(values).ok()); };
}

std::vector<std::shared_ptr<gloo::Context>> PlainGloo(uint32_t ranks) {
  gloo::rendezvous::HashStore store;
  std::vector<std::shared_ptr<gloo::Context>> contexts(ranks);
  OnEachRank(ranks, [&](uint32_t rank) {
    std::shared_ptr<gloo::transport::Device> device = gloo::transport::tcp::CreateDevice("127.0.0.1");
    const auto context =
        std::make_shared<gloo::rendezvous::Context>(static_cast<int>(rank), static_cast<int>(ranks));
    context->setTimeout(std::chrono::duration_cast<std::chrono::milliseconds>(kTimeout));
    context->connectFullMesh(store, device);
    contexts[rank] = context;
  });
  return contexts;
}

void SumPlainly(const std::shared_ptr<gloo::Context>& context, std::vector<float>& values) {
  gloo::AllreduceOptions options(context);
  options.setOutput(values.data(), values.size());
  options.setReduceFunction(
      [](void* to, const void* a, const void* b, size_t n) { gloo::sum<float>(to, a, b, n); });
  gloo::allreduce(options);
}

void Measure(const char* name, uint32_t ranks, const Sum& sum) {
  for (const size_t count : kCounts) {
    std::vector<double> seconds;
    OnEachRank(ranks, [&](uint32_t rank) {
      std::vector<float> values(count);
      for (size_t round = 0; round < kRounds; ++round) {
        const MonoTime begin = RealClock().Now();
        sum(rank, values);
        if (rank == 0) seconds.push_back(Seconds(RealClock().Now() - begin));
      }
    });
    std::ranges::sort(seconds);
    std::printf("%-12s %6u %10zu %12.1f %12.1f\n", name, ranks, count * sizeof(float),
                seconds[kRounds / 10] * 1e6, seconds[kRounds / 2] * 1e6);
    std::fflush(stdout);
  }
}

void Run(const std::vector<uint32_t>& sizes) {
  std::printf("%-12s %6s %10s %12s %12s\n", "sum", "ranks", "bytes", "us, p10", "us, median");
  for (const uint32_t ranks : sizes) {
    const Group threads = MakeLocalCommunicators(ranks, kTimeout),
                tcp = MakeSocketGroup(ranks, kTimeout, Transport::kTcp).value(),
                gloo = MakeSocketGroup(ranks, kTimeout, Transport::kGloo).value();
    const auto plain = PlainGloo(ranks);
    Measure("threads", ranks, SumOf(threads));
    Measure("tcp", ranks, SumOf(tcp));
    Measure("gloo", ranks, SumOf(gloo));
    Measure("gloo plain", ranks,
            [&](uint32_t rank, std::vector<float>& values) { SumPlainly(plain[rank], values); });
  }
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  std::vector<uint32_t> ranks = {2, 4};
  CLI::App app("Sums over the ranks of a group");
  app.add_option("--ranks", ranks, "sizes of groups")->delimiter(',');
  CLI11_PARSE(app, argc, argv);
  std::signal(SIGPIPE, SIG_IGN);
  terrace::Run(ranks);
}
