// Answers with a drafter and without, in turns: two engines of one model in this process, of which one works
// at a time. Prints tokens a second of both, and the ratio of each round: median, least and most. The answers
// of both are compared; exit code 1 when one differs.
//
// Drafters
//   ngram   what came before
//   model   --draft-model
//   forced  knows the answers, and each of its tokens is right with the chance --right
// Prompts
//   golden  of models/eval/golden.jsonl: what the demo models were trained for; greedy
//   copy    a passage of random tokens, many times over; greedy, which goes on in circles
//   random  random tokens; drawn, with nothing to go by
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <random>

#include "base/clock.h"
#include "base/exit_code.h"
#include "base/json.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/open_engine.h"
#include "worker/speculative/fake_drafter.h"

namespace terrace {
namespace {

struct Flags {
  std::string model = "models/terrace-demo-base", draft_model, drafter = "ngram", prompts = "golden";
  uint32_t threads = 0, rounds = 7, prompt_tokens = 64, output_tokens = 128, max_tokens = 8, seed = 1;
  std::vector<uint32_t> batch = {1, 2, 4, 8, 16, 32, 64};
  std::vector<double> right = {0, 0.3, 0.6, 0.9, 1};  // of forced
};

using Answers = std::map<uint64_t, std::vector<int32_t>>;  // by seed of the sequence

std::vector<std::vector<int32_t>> GoldenPrompts() {
  std::vector<std::vector<int32_t>> prompts;
  std::ifstream file("models/eval/golden.jsonl");
  for (std::string line; std::getline(file, line);) {
    const Json row = *ParseJson(line);
    prompts.push_back(row["prompt_tokens"].get<std::vector<int32_t>>());
  }
  CHECK(!prompts.empty(), "no prompts in models/eval/golden.jsonl");
  return prompts;
}

std::vector<SequenceSpec> MakeSpecs(const Flags& flags, uint32_t count, uint32_t vocab_size) {
  std::mt19937 random(flags.seed);
  const auto token = [&] { return static_cast<int32_t>(random() % vocab_size); };
  const auto golden = flags.prompts == "golden" ? GoldenPrompts() : std::vector<std::vector<int32_t>>();
  std::vector<SequenceSpec> specs(count);
  for (uint32_t i = 0; i < count; ++i) {
    SequenceSpec& spec = specs[i];
    if (!golden.empty()) spec.prompt = golden[random() % golden.size()];
    while (golden.empty() && spec.prompt.size() < flags.prompt_tokens) {
      constexpr size_t kPassage = 16;  // tokens
      const bool repeats = flags.prompts == "copy" && spec.prompt.size() >= kPassage;
      spec.prompt.push_back(repeats ? spec.prompt[spec.prompt.size() - kPassage] : token());
    }
    spec.max_tokens = flags.output_tokens;
    spec.ignore_eos = true;
    spec.sampling.temperature = flags.prompts == "random" ? 1.0f : 0.0f;
    spec.sampling.seed = i + 1;
  }
  return specs;
}

struct Measured {
  Answers answers;
  double tokens_per_second = 0;
};

StatusOr<Measured> Answer(Engine& engine, const std::vector<SequenceSpec>& specs) {
  Measured measured;
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  const MonoTime begin = RealClock().Now();
  for (const SequenceSpec& spec : specs) {
    sinks.push_back(std::make_shared<CollectingSink>());
    RETURN_IF_ERROR(engine.Submit(spec, sinks.back()));
  }
  size_t tokens = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    const CollectingSink::Answer answer = sinks[i]->Wait();
    RETURN_IF_ERROR(answer.result.error);
    tokens += answer.tokens.size();
    measured.answers[specs[i].sampling.seed] = answer.ids();
  }
  measured.tokens_per_second = static_cast<double>(tokens) / Seconds(RealClock().Now() - begin);
  return measured;
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

class Bench {
 public:
  explicit Bench(const Flags& flags) : flags_(flags) {}

  Status Run() {
    ASSIGN_OR_RETURN(off_, OpenEngine(Options("none")));
    std::printf("%s, %s, %u threads, %s prompts, %u tokens out, drafter %s\n", flags_.model.c_str(),
                off_.device.c_str(), off_.threads, flags_.prompts.c_str(), flags_.output_tokens,
                flags_.drafter.c_str());
    std::printf("%-6s %-6s %10s %10s %24s %10s %10s\n", "right", "batch", "off tok/s", "on tok/s", "ratio",
                "accepted", "tok/pass");
    if (flags_.drafter != "forced") return RunBatches(/*right=*/0);
    for (const double right : flags_.right) RETURN_IF_ERROR(RunBatches(right));
    return {};
  }

 private:
  OpenEngineOptions Options(const std::string& drafter) const {
    OpenEngineOptions options;
    options.model = flags_.model;
    options.threads = flags_.threads;
    options.max_sequences = std::ranges::max(flags_.batch);
    options.max_step_tokens = std::max(256u, 4 * options.max_sequences);
    options.prefix_cache = false;  // every round computes the same
    options.device = "cpu";
    options.speculation = {.drafter = drafter,
                           .model = drafter == "model" ? flags_.draft_model : "",
                           .max_tokens = flags_.max_tokens};
    return options;
  }

  // What was learned of one setting is not carried into the next: each has an engine of its own.
  Status RunBatches(double right) {
    for (const uint32_t batch : flags_.batch) RETURN_IF_ERROR(RunBatch(batch, right));
    return {};
  }

  Status RunBatch(uint32_t batch, double right) {
    const uint32_t vocab_size = off_.files->config.vocab_size;
    const std::vector<SequenceSpec> specs = MakeSpecs(flags_, batch, vocab_size);
    ASSIGN_OR_RETURN(Measured first, Answer(*off_.engine, specs));
    const bool is_forced = flags_.drafter == "forced";
    OpenEngineOptions options = Options(is_forced ? "none" : flags_.drafter);
    if (is_forced) {
      options.make_drafter = [&, right](const ModelFiles&) {
        return std::make_unique<FakeDrafter>(FakeDrafter::Options{
            .answer =
                [&first](const DraftRequest& request, uint32_t index) {
                  const std::vector<int32_t>& answer = first.answers.at(request.sampling->seed);
                  return index < answer.size() ? answer[index] : 0;
                },
            .right = [right](const DraftRequest&) { return right; },
            .vocab_size = vocab_size});
      };
    }
    ASSIGN_OR_RETURN(const OpenedEngine on, OpenEngine(options));
    RETURN_IF_ERROR(Answer(*on.engine, specs).status());  // the first steps of all tell what one takes
    std::vector<double> off_rates, on_rates, ratios;
    for (uint32_t round = 0; round < flags_.rounds; ++round) {
      ASSIGN_OR_RETURN(const Measured off_round, Answer(*off_.engine, specs));
      ASSIGN_OR_RETURN(const Measured on_round, Answer(*on.engine, specs));
      if (off_round.answers != first.answers || on_round.answers != first.answers)
        return Internal("the answers differ");
      off_rates.push_back(off_round.tokens_per_second);
      on_rates.push_back(on_round.tokens_per_second);
      ratios.push_back(on_rates.back() / off_rates.back());
    }
    on.engine->Stop();
    const SpeculationStats stats = on.engine->Stats().speculation;
    double verified = 0, accepted = 0;
    for (size_t i = 0; i < SpeculationStats::kPositions; ++i) {
      verified += static_cast<double>(stats.verified[i]);
      accepted += static_cast<double>(stats.accepted[i]);
    }
    const auto passes = static_cast<double>(stats.passes);
    std::printf("%-6.2f %-6u %10.1f %10.1f %8.3f (%.3f to %.3f) %10.3f %10.2f\n", right, batch,
                Median(off_rates), Median(on_rates), Median(ratios), std::ranges::min(ratios),
                std::ranges::max(ratios), verified > 0 ? accepted / verified : 0,
                passes > 0 ? 1 + accepted / passes : 1);
    std::fflush(stdout);
    return {};
  }

  const Flags flags_;
  OpenedEngine off_;
};

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Flags flags;
  CLI::App app("Answers with a drafter and without, in turns");
  app.add_option("--model", flags.model, "a model folder or .gguf file");
  app.add_option("--drafter", flags.drafter, "")->check(CLI::IsMember({"ngram", "model", "forced"}));
  app.add_option("--draft-model", flags.draft_model, "of --drafter model");
  app.add_option("--prompts", flags.prompts, "")->check(CLI::IsMember({"golden", "copy", "random"}));
  app.add_option("--right", flags.right, "chances of --drafter forced")->delimiter(',');
  app.add_option("--batch", flags.batch, "sequences at once")->delimiter(',');
  app.add_option("--rounds", flags.rounds, "")->check(CLI::Range(1, 1000));
  app.add_option("--prompt-tokens", flags.prompt_tokens, "of copy and random")->check(CLI::Range(1, 1 << 16));
  app.add_option("--output-tokens", flags.output_tokens, "")->check(CLI::Range(1, 1 << 16));
  app.add_option("--max-tokens", flags.max_tokens, "of a draft")->check(CLI::Range(1, 64));
  app.add_option("--threads", flags.threads, "0: all cores");
  app.add_option("--seed", flags.seed, "of prompts");
  CLI11_PARSE(app, argc, argv);
  const terrace::Status status = terrace::Bench(flags).Run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", terrace::Message(status).c_str());
  return status.ok() ? 0 : 1;
}
