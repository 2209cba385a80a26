// What choosing a replica costs: 1,024 replicas with 2,000 cached blocks each, prompts of 2,000 tokens; block
// keys, prefix index and balancer together, as for every request. And what the index takes in memory.
#include <malloc.h>

#include <atomic>
#include <cstdio>
#include <random>
#include <thread>

#include "base/metrics.h"
#include "router/dispatch/attempts.h"
#include "tests/bench/timings.h"

namespace terrace {
namespace {

constexpr uint32_t kReplicas = 1024, kBlocks = 2000, kBlockTokens = 16, kTokens = 2000, kRounds = 20'000;
constexpr uint32_t kDocuments = 100, kDocumentTokens = 1008;

using Tokens = std::vector<TokenId>;

class NoCluster : public ClusterSource {
 public:
  std::shared_ptr<const ClusterView> View() const override { return nullptr; }
};

class Bench {
 public:
  Bench() {
    tier_.model_digest = "model";
    tier_.prefixes = index_;
    for (uint32_t i = 0; i < kReplicas; ++i) {
      ReplicaView& replica = tier_.replicas.emplace_back();
      replica.id = i;
      replica.state = ReplicaState::kReady;
      replica.description.block_tokens = kBlockTokens;
      replica.description.kv_layout = "layout";
      replica.load.running_sequences = static_cast<uint32_t>(random_() % 8);
      replica.prefix_slot = index_->Add();
      replica.in_flight = std::make_shared<ReplicaInFlight>();  // each on its own, as a cluster's
    }
    tier_.FindReady();
    for (uint32_t i = 0; i < kDocuments; ++i) documents_.push_back(Draw(kDocumentTokens));
  }

  void Run() {
    const size_t before = AllocatedBytes();
    for (uint32_t i = 0; i < kReplicas; ++i) Fill(i);
    const size_t bytes = AllocatedBytes() - before;
    std::printf("index: %.1f million blocks of replicas, %.1f bytes each\n\n", kReplicas * kBlocks / 1e6,
                static_cast<double>(bytes) / kReplicas / kBlocks);
    Timings::PrintHeader();
    Measure("nothing cached", [&] { return Draw(kTokens); });
    Measure("a prefix of 1,008 tokens on every replica", [&] { return Continue(documents_[0]); });
    Measure("a prefix of 1,008 tokens on 1 to 512",
            [&] { return Continue(documents_[1 + random_() % (kDocuments - 1)]); });
    Measure("all 2,000 tokens on one", [&] { return whole_[random_() % whole_.size()]; });
    std::atomic<bool> is_over = false;
    std::thread writer([&] {  // as many changes as a thread can make
      std::mt19937_64 random(2);
      PrefixDelta delta;
      for (uint32_t i = 0; !is_over; i = (i + 1) % kReplicas) {
        delta.added.resize(100);
        for (uint64_t& key : delta.added) key = random();
        delta.digest = digests_[i];
        for (const uint64_t key : delta.added) delta.digest ^= key;
        CHECK(index_->Apply(i, delta));
        std::swap(delta.added, delta.removed);
        delta.added.clear();
        delta.digest = digests_[i];
        CHECK(index_->Apply(i, delta));
        delta.removed.clear();
      }
    });
    Measure("1 to 512, the index changing all the time",
            [&] { return Continue(documents_[1 + random_() % (kDocuments - 1)]); });
    is_over = true;
    writer.join();
  }

 private:
  // Large pieces have a mapping each, which uordblks leaves out.
  static size_t AllocatedBytes() {
    const auto info = mallinfo2();
    return info.uordblks + info.hblkhd;
  }
  Tokens Draw(size_t count) {
    Tokens tokens(count);
    for (TokenId& token : tokens) token = static_cast<TokenId>(random_() % 32'000);
    return tokens;
  }
  Tokens Continue(Tokens tokens) {
    const Tokens rest = Draw(kTokens - tokens.size());
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    return tokens;
  }

  // Document d is on every (d + 1)th replica; the rest of each cache are conversations of its own.
  void Fill(uint32_t replica) {
    PrefixDelta delta{.is_snapshot = true};
    const auto add = [&](const Tokens& tokens) {
      std::vector<Hash128> keys;
      ExtendBlockKeys(root_, tokens, kBlockTokens, keys);
      for (const Hash128& key : keys) {
        if (delta.added.size() < kBlocks) delta.added.push_back(ShortKey(key));
      }
    };
    for (uint32_t d = 0; d < kDocuments; ++d) {
      if (replica % (d + 1) == 0) add(documents_[d]);
    }
    while (delta.added.size() < kBlocks) {
      const Tokens tokens = Draw(kTokens);
      if (kBlocks - delta.added.size() >= kTokens / kBlockTokens && whole_.size() < 1000)
        whole_.push_back(tokens);
      add(tokens);
    }
    for (const uint64_t key : delta.added) delta.digest ^= key;
    digests_.push_back(delta.digest);
    CHECK(index_->Apply(replica, delta));
  }

  template <typename DrawPrompt>
  void Measure(const char* name, const DrawPrompt& draw) {
    Timings timings;
    for (uint32_t round = 0; round < kRounds; ++round) {
      const Tokens prompt = draw();
      const MonoTime begin = RealClock().Now();  // waiting for the index counts
      const auto picked = PickReplica(state_, *request_, view_, 0, prompt, {});
      timings.Add(RealClock().Now() - begin);
      CHECK(picked.ok());
    }
    timings.Print(name);
  }

  std::mt19937_64 random_{1};
  const Hash128 root_ = RootBlockKey({.model = "model", .layout = "layout"});
  const std::shared_ptr<PrefixIndex> index_ = std::make_shared<PrefixIndex>();
  ClusterView view_ = {.tiers = {{.name = "tier"}}};
  TierView& tier_ = view_.tiers[0];
  std::vector<Tokens> documents_, whole_;
  std::vector<uint64_t> digests_;  // of each replica

  NoCluster cluster_;
  MetricRegistry metrics_;
  const std::unique_ptr<ModelCatalog> catalog_ = *ModelCatalog::Make({{.name = "tier"}}, {}, "");
  const std::unique_ptr<Balancer> balancer_ = MakeBalancer(BalancePolicy::kPrefix);
  TenantLedger ledger_{RealClock()};
  AdmissionBook book_{ledger_, RealClock()};
  Admission admission_{{}, std::vector<std::string>{"tier"}, book_};
  Recorder recorder_{metrics_, std::vector<std::string>{"tier"}};
  DispatchState state_{{cluster_, *catalog_, *balancer_, admission_, recorder_, RealClock()}};
  const RequestPtr request_ = *Request::Make({.request_id = "r", .input = std::string("x")});
};

}  // namespace
}  // namespace terrace

int main() { terrace::Bench().Run(); }
