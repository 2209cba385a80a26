// Ten thousand sequences are cancelled at any point of their lives, through an Engine with its thread: when
// submitted, between chunks of the prompt, between tokens, paused, swapped out, and by the engine's end.
// Nothing of them is left.
#include <malloc.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <future>
#include <random>
#include <thread>

#include "base/fake_clock.h"
#include "gtest/gtest.h"
#include "worker/engine/engine.h"
#include "worker/engine/fake_executor.h"

namespace terrace {
namespace {

constexpr uint32_t kVocab = 1000, kClients = 2, kWindow = 16;

// Closes itself, or becomes full, after so many chunks of scores and tokens.
class FickleSink : public TokenSink {
 public:
  FickleSink(std::atomic<int>& alive, uint32_t patience, bool closes)
      : alive_(alive), patience_(patience), closes_(closes) {
    ++alive_;
    Lose(patience == 0);
  }
  ~FickleSink() override { --alive_; }

  void OnTokens(uint32_t first_index, std::span<const SampledToken> tokens) override {
    CHECK(first_index == tokens_ && !is_over_);
    tokens_ += static_cast<uint32_t>(tokens.size());
    Lose(--patience_ == 0);
  }
  void OnPromptScores(uint32_t, std::span<const SampledToken>) override { Lose(--patience_ == 0); }
  void OnFinish(const SequenceResult& result) override {
    CHECK(!is_over_, "a second OnFinish");
    {
      std::lock_guard lock(mutex_);
      reason_ = result.reason;
      is_over_ = true;
    }
    changed_.notify_all();
  }
  bool is_closed() const override { return is_closed_; }
  bool is_full() const override { return is_full_; }

  void Close() { is_closed_ = true; }
  // Until it has closed itself, is full, or has ended.
  void AwaitTurn() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return is_closed_ || is_full_ || is_over_; });
  }
  FinishReason AwaitEnd() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return is_over_.load(); });
    return reason_;
  }

 private:
  void Lose(bool now) {
    if (!now) return;
    {
      std::lock_guard lock(mutex_);
      (closes_ ? is_closed_ : is_full_) = true;
    }
    changed_.notify_all();
  }

  std::atomic<int>& alive_;
  int64_t patience_;  // from here to tokens_: the loop thread's, once submitted
  const bool closes_;
  uint32_t tokens_ = 0;
  std::atomic<bool> is_closed_ = false, is_full_ = false, is_over_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  FinishReason reason_ = FinishReason::kStop;  // GUARDED_BY(mutex_)
};

struct Counts {
  std::atomic<int> sinks = 0;  // that exist
  std::atomic<uint64_t> cancelled = 0, closed_while_paused = 0, closed_while_swapped = 0;
};

Engine::Options TightOptions() {
  Engine::Options options;
  options.scheduler = {.max_sequences = 6,
                       .max_step_tokens = 40,
                       .context_length = 256,
                       .vocab_size = kVocab,
                       .block_tokens = 8,
                       .blocks = 40,
                       .host_blocks = 60,
                       .end_tokens = {}};
  options.inbox = kClients * kWindow;
  return options;
}

// Who is to pause is of the lowest priority, so that it holds nobody up.
SequenceSpec DrawSpec(std::mt19937& random, bool closes, MonoTime now) {
  SequenceSpec spec;
  const uint32_t common = random() % 3 * 20, length = 1 + random() % 150;
  for (uint32_t i = 0; i < length; ++i)
    spec.prompt.push_back(static_cast<int32_t>(i < common ? i : random() % kVocab));
  spec.max_tokens = 90;
  spec.sampling.seed = random();
  spec.score_prompt = random() % 3 == 0;
  spec.priority = closes ? static_cast<int32_t>(random() % 2) : 0;
  if (random() % 8 == 0) spec.deadline = now + std::chrono::milliseconds(random() % 100);
  return spec;
}

// Submits, and closes whom the window pushes out, until `wanted` of its sequences were cancelled.
void RunClient(Engine& engine, const Clock& clock, Counts& counts, uint64_t wanted, uint32_t seed,
               bool drains) {
  std::mt19937 random(seed);
  std::deque<std::shared_ptr<FickleSink>> window;
  uint64_t cancelled = 0;
  while (cancelled < wanted) {
    const bool closes = random() % 2 == 0;
    auto sink = std::make_shared<FickleSink>(counts.sinks, random() % 30, closes);
    const Status submitted = engine.Submit(DrawSpec(random, closes, clock.Now()), sink);
    if (submitted.ok()) {
      window.push_back(std::move(sink));
    } else {
      CHECK(Reason(submitted) == "overloaded", Message(submitted));
    }
    while (window.size() > (submitted.ok() ? kWindow : kWindow / 2)) {
      const size_t any = random() % window.size();
      const std::shared_ptr<FickleSink> out = window[any];
      window.erase(window.begin() + static_cast<ptrdiff_t>(any));
      if (random() % 4 > 0) out->AwaitTurn();
      const EngineStats stats = engine.Stats();
      counts.closed_while_paused += out->is_full() && stats.paused > 0;
      counts.closed_while_swapped += out->is_full() && stats.swapped_blocks > 0;
      out->Close();
      engine.Wake();
      cancelled += out->AwaitEnd() == FinishReason::kCancelled;
    }
  }
  counts.cancelled += cancelled;
  if (!drains) return;  // the engine's end is theirs
  for (const auto& sink : window) sink->Close();
}

void RunEngine(Counts& counts, uint64_t cancels, bool drains) {
  FakeClock clock;
  FakeExecutor::Options fake{.block_tokens = 8};
  fake.time = {
      .seconds_per_step = 1e-3, .seconds_per_token = 1e-4, .seconds_per_transfer = 1e-5};  // swapping pays
  fake.on_step_time = [&clock](double seconds) {
    clock.Advance(std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9)));
  };
  Engine engine(TightOptions(), std::make_unique<FakeExecutor>(fake), clock);
  {
    std::vector<std::jthread> clients;
    for (uint32_t i = 0; i < kClients; ++i) {
      clients.emplace_back(
          [&, i] { RunClient(engine, clock, counts, cancels / kClients, /*seed=*/7 + i, drains); });
    }
  }
  if (drains) {
    std::promise<void> drained;
    engine.Drain([&] { drained.set_value(); });
    drained.get_future().wait();
    EXPECT_EQ(engine.Stats().held_blocks, 0u);
  }
  engine.Stop();
  const EngineStats stats = engine.Stats();
  EXPECT_EQ(stats.running + stats.waiting, 0u);
  EXPECT_EQ(stats.held_blocks, 0u);
  EXPECT_EQ(stats.free_blocks + stats.cached_blocks, stats.total_blocks);
  EXPECT_EQ(stats.swapped_blocks, 0u);
  EXPECT_EQ(stats.waiting_prompt_tokens, 0u);
  EXPECT_GT(stats.swap_preemptions, cancels / 100);
}

size_t Entries(const char* folder) {
  const std::filesystem::directory_iterator entries(folder), end;
  return static_cast<size_t>(std::distance(entries, end));
}

// Zero where a sanitizer has its own allocator: it looks for leaks itself.
size_t HeapBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

TEST(Cancelling, TenThousandTimesLeavesNothing) {
  constexpr uint64_t kCancels = 10'000;
  {
    Counts warm_up;
    RunEngine(warm_up, kCancels / 10, /*drains=*/true);
  }
  const size_t files = Entries("/proc/self/fd"), threads = Entries("/proc/self/task"), heap = HeapBytes();
  Counts counts;
  RunEngine(counts, kCancels / 2, /*drains=*/true);
  RunEngine(counts, kCancels / 2, /*drains=*/false);
  EXPECT_GE(counts.cancelled, kCancels);
  EXPECT_GT(counts.closed_while_paused, kCancels / 100);
  EXPECT_GT(counts.closed_while_swapped, kCancels / 100);
  EXPECT_EQ(counts.sinks, 0);
  EXPECT_EQ(Entries("/proc/self/fd"), files);
  EXPECT_EQ(Entries("/proc/self/task"), threads);
  // 20 bytes a sequence; what is kept of one by mistake would be larger. The allocator's own caches are less.
  EXPECT_LE(HeapBytes(), heap + 20 * kCancels);
}

}  // namespace
}  // namespace terrace
