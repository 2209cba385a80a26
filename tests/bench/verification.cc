// What verifying a draft saves, and what it costs where the draft is wrong: answers of one model with a draft
// whose first tokens are the answer's and whose other tokens are not, in turns with the same answers without
// one. Times are those of a caller: from the request to the end of the answer, the prompt included, which is
// never cached. Each round has a prompt of its own; the ratio is taken within the round, so that what else
// the machine does falls out. Every answer has to be the one without a draft, to the token: exit code 1 if
// not.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "base/status.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/open_engine.h"

namespace terrace {
namespace {

// What is asked of verification: of the time without a draft, where so much of the draft is right.
constexpr struct { double agreeing, most; } kRules[] = {{0, 1.05}, {0.6, 0.67}};

struct Flags {
  std::string model = "models/terrace-demo-base", compute = "auto", kv_dtype = "auto";
  uint32_t threads = 1, rounds = 30, prompt_tokens = 64, answer_tokens = 96, others = 8;
  std::vector<double> agreeing = {0, 0.3, 0.6, 1};
  uint64_t seed = 1;
};

// An answer that runs beside those that are timed, until nobody wants it any more.
class Companion : public TokenSink {
 public:
  void OnTokens(uint32_t, std::span<const SampledToken>) override { Set(has_begun_); }
  void OnPromptScores(uint32_t, std::span<const SampledToken>) override {}
  void OnFinish(const SequenceResult& result) override {
    std::lock_guard lock(mutex_);
    was_cancelled_ = result.reason == FinishReason::kCancelled;
    has_begun_ = has_ended_ = true;
    changed_.notify_all();
  }
  bool is_closed() const override { return is_closed_; }

  void AwaitBegin() { Await(has_begun_); }
  // Whether it ran all the time.
  bool Close() {
    is_closed_ = true;
    Await(has_ended_);
    std::lock_guard lock(mutex_);
    return was_cancelled_;
  }

 private:
  void Set(bool& flag) {
    std::lock_guard lock(mutex_);
    flag = true;
    changed_.notify_all();
  }
  void Await(const bool& flag) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return flag; });
  }

  std::atomic<bool> is_closed_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool has_begun_ = false, has_ended_ = false, was_cancelled_ = false;  // GUARDED_BY(mutex_)
};

struct Timed {
  double seconds = 0, cpu_seconds = 0;  // of the process
  std::vector<int32_t> answer = {};
};

double ProcessSeconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

class Bench {
 public:
  Bench(const Flags& flags, OpenedEngine opened) : flags_(flags), opened_(std::move(opened)) {}

  // Whether all answers were the same, with so many others beside them.
  StatusOr<bool> Run(uint32_t others) {
    std::vector<std::vector<double>> ratios(flags_.agreeing.size()), cpu_ratios(flags_.agreeing.size());
    std::vector<double> plain_seconds;
    for (uint32_t round = 0; round <= flags_.rounds; ++round) {
      std::vector<Timed> timed(1 + flags_.agreeing.size());  // without a draft, then by `agreeing`
      SequenceSpec spec = Spec(/*number=*/0, round, flags_.answer_tokens);
      ASSIGN_OR_RETURN(const Timed wanted, Time(spec, 0, round));  // what drafts are made of
      for (size_t turn = 0; turn < timed.size(); ++turn) {
        const size_t which = (turn + round) % timed.size();
        spec.draft = which == 0 ? std::vector<int32_t>() : Draft(wanted.answer, flags_.agreeing[which - 1]);
        ASSIGN_OR_RETURN(timed[which], Time(spec, others, round));
        if (timed[which].answer != wanted.answer) return false;
      }
      if (round == 0) continue;  // the first one warms up
      plain_seconds.push_back(timed[0].seconds);
      for (size_t i = 0; i < ratios.size(); ++i) {
        ratios[i].push_back(timed[i + 1].seconds / timed[0].seconds);
        cpu_ratios[i].push_back(timed[i + 1].cpu_seconds / timed[0].cpu_seconds);
      }
    }
    Print(others, plain_seconds, ratios, cpu_ratios);
    return true;
  }

 private:
  // Of the prompt `number` of a round; all of one round are different.
  SequenceSpec Spec(uint32_t number, uint32_t round, uint32_t max_tokens) const {
    SequenceSpec spec;
    const double vocabulary = opened_.files->config.vocab_size;
    for (uint32_t i = 0; i < flags_.prompt_tokens; ++i) {
      const double place = RandomUniform(flags_.seed, (uint64_t{round} << 32) + i, number);
      spec.prompt.push_back(static_cast<int32_t>(place * vocabulary));
    }
    spec.sampling.temperature = 0;
    spec.max_tokens = max_tokens;
    spec.ignore_eos = true;
    spec.speculation = 0;  // nobody else drafts
    return spec;
  }

  // The first tokens of the answer, and then others than it has.
  std::vector<int32_t> Draft(std::vector<int32_t> answer, double agreeing) const {
    const auto right = static_cast<size_t>(agreeing * static_cast<double>(answer.size()) + 0.5);
    const auto vocabulary = static_cast<int32_t>(opened_.files->config.vocab_size);
    for (size_t i = right; i < answer.size(); ++i) answer[i] = (answer[i] + 1) % vocabulary;
    return answer;
  }

  StatusOr<Timed> Time(const SequenceSpec& spec, uint32_t others, uint32_t round) {
    std::vector<std::shared_ptr<Companion>> companions;
    for (uint32_t i = 0; i < others; ++i) {
      companions.push_back(std::make_shared<Companion>());
      RETURN_IF_ERROR(opened_.engine->Submit(Spec(i + 1, round, /*max_tokens=*/0), companions.back()));
    }
    for (const auto& companion : companions) companion->AwaitBegin();
    const auto sink = std::make_shared<CollectingSink>();
    const double cpu = ProcessSeconds();
    const MonoTime begin = RealClock().Now();
    RETURN_IF_ERROR(opened_.engine->Submit(spec, sink));
    const CollectingSink::Answer answer = sink->Wait();
    Timed timed{.seconds = Seconds(RealClock().Now() - begin),
                .cpu_seconds = ProcessSeconds() - cpu,
                .answer = answer.ids()};
    for (const auto& companion : companions) {
      if (!companion->Close())
        return FailedPrecondition("the others ended first: the context of ", opened_.context_length,
                                  " tokens is too short for answers of ", flags_.answer_tokens);
    }
    RETURN_IF_ERROR(answer.result.error);
    return timed;
  }

  void Print(uint32_t others, std::vector<double> plain_seconds, std::vector<std::vector<double>>& ratios,
             std::vector<std::vector<double>>& cpu_ratios) const {
    std::ranges::sort(plain_seconds);
    std::printf("\n%u others; without a draft %.2f ms (%.2f to %.2f)\n", others,
                plain_seconds[plain_seconds.size() / 2] * 1e3, plain_seconds.front() * 1e3,
                plain_seconds.back() * 1e3);
    std::printf("%-10s %8s %20s %18s %10s\n", "agreeing", "of that", "middle half", "range", "CPU");
    for (size_t i = 0; i < ratios.size(); ++i) {
      std::vector<double>& sorted = ratios[i];
      std::ranges::sort(sorted);
      std::ranges::sort(cpu_ratios[i]);
      const auto at = [&](double share) {
        return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1))];
      };
      std::printf("%9.0f%% %8.3f %8.3f to %8.3f %6.3f to %6.3f %10.3f", flags_.agreeing[i] * 100, at(0.5),
                  at(0.25), at(0.75), at(0), at(1), cpu_ratios[i][cpu_ratios[i].size() / 2]);
      for (const auto& rule : kRules) {
        if (rule.agreeing == flags_.agreeing[i])
          std::printf("   goal %.2f %s", rule.most, at(0.5) <= rule.most ? "held" : "MISSED");
      }
      std::printf("\n");
    }
    std::fflush(stdout);
  }

  const Flags& flags_;
  const OpenedEngine opened_;
};

StatusOr<bool> Run(const Flags& flags) {
  OpenEngineOptions options;
  options.model = flags.model;
  options.threads = flags.threads;
  options.max_sequences = flags.others + 1;
  options.compute = flags.compute;
  options.kv_dtype = flags.kv_dtype;
  options.prefix_cache = false;
  options.device = "cpu";
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngine(options));
  std::printf("%s, %s, %u threads, %s; prompts of %u tokens, answers and drafts of %u, %u rounds, seed %zu\n",
              flags.model.c_str(), opened.device.c_str(), opened.threads, opened.compute.c_str(),
              flags.prompt_tokens, flags.answer_tokens, flags.rounds, static_cast<size_t>(flags.seed));
  Bench bench(flags, std::move(opened));
  ASSIGN_OR_RETURN(const bool alone, bench.Run(0));
  if (!alone || flags.others == 0) return alone;
  return bench.Run(flags.others);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Flags flags;
  CLI::App app("What verifying drafts saves and costs");
  app.add_option("--model", flags.model, "a .gguf file or a model folder")->capture_default_str();
  app.add_option("--compute", flags.compute, "auto or f32")->capture_default_str();
  app.add_option("--kv", flags.kv_dtype, "KV dtype")->capture_default_str();
  app.add_option("--threads", flags.threads, "of the compute pool")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--rounds", flags.rounds, "")->check(CLI::Range(1, 10'000))->capture_default_str();
  app.add_option("--prompt-tokens", flags.prompt_tokens, "")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--answer-tokens", flags.answer_tokens, "")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--others", flags.others, "answers that run beside; 0: none")->capture_default_str();
  app.add_option("--agreeing", flags.agreeing, "shares of the drafts that are right")->delimiter(',');
  app.add_option("--seed", flags.seed, "of the prompts")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const terrace::StatusOr<bool> same = terrace::Run(flags);
  if (!same.ok()) {
    std::fprintf(stderr, "%s\n", terrace::Message(same.status()).c_str());
  } else if (!*same) {
    std::fprintf(stderr, "an answer is not the one without a draft\n");
  }
  return same.ok() && *same ? 0 : 1;
}
