// Answers with a drafter and without, in turns: two engines of one model in this process, of which one works
// at a time. Prints tokens a second of both and the ratio of each round, median with least and most, beside
// what is wanted of it. The answers of both are compared; exit code 1 when one differs.
//
// Parts, each within --part-seconds:
//   demo   terrace-demo-base with terrace-demo-nano as its drafter: tasks and stories at batch 1, 4 and 16
//   shape  a synthesized model of the 1B shape, whose drafter takes what a model of the 135M shape takes and
//          is right as often as --right has it
//   free   the same without a drafter's model: guesses that cost nothing
//   ngram  what came before, of text that comes in circles and of text with nothing to go by: base, whose
//          steps compute, and a synthesized model of the 135M shape, whose steps read weights
//   load   base on tasks with each drafter, from 1 to 64 answers at once
//   trees  as demo and ngram, with second guesses beside the first; forced ones too
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <span>

#include "base/clock.h"
#include "base/machine.h"
#include "base/median.h"
#include "base/rng.h"
#include "tests/bench/forced_executor.h"
#include "tests/bench/speculation_prompts.h"
#include "tools/optimize/model_shapes.h"
#include "tools/optimize/synthesize.h"
#include "tools/optimize/synthetic_text.h"
#include "worker/engine/collecting_sink.h"
#include "worker/engine/open_engine.h"
#include "worker/speculative/fake_drafter.h"

namespace terrace {
namespace {

// What is asked of speculation, of the tokens a second without it: of text that comes in circles, of one
// answer at a time by a model whose steps read weights, and of anything.
constexpr double kCopyGoal = 1.5, kAnyGoal = 0.98;
constexpr uint32_t kLeastRounds = 3;
// Of each engine in a round: prompts are answered again and again for as long, so that a moment in which the
// machine does something else is no result.
constexpr double kRoundSeconds = 0.4;
constexpr uint64_t kForcedStream = 77;  // not that of the answers' draws
// Of the synthesized models: what fits a machine of little memory.
constexpr uint32_t kShapeVocabulary = 49'152, kShapeContext = 1024;

struct Flags {
  std::vector<std::string> parts = {"demo", "shape", "free", "ngram", "load", "trees"};
  std::string model = "models/terrace-demo-base", draft_model = "models/terrace-demo-nano";
  std::string work_folder = "/tmp/terrace-speculation";
  uint32_t threads = 0, rounds = 7, max_tokens = 8, max_branch_tokens = 4, seed = 1;
  double part_seconds = 240;
  std::vector<uint32_t> batch = {};  // instead of a part's own
  std::vector<double> right = {0, 0.3, 0.6, 0.8, 0.9, 1};
};

using Answers = std::map<uint64_t, std::vector<int32_t>>;  // by seed of the sequence

// One line of the table.
struct Setting {
  std::string model = "", drafter = "ngram";                                // ngram, model or free
  std::string draft_model = "";                                             // of drafter: model
  std::optional<double> right = std::nullopt, branch_right = std::nullopt;  // forced; else the drafter's own
  PromptsWanted prompts = {};
  uint32_t batch = 1;
  uint32_t max_branch_tokens = 0;
  double goal = kAnyGoal;
};

struct Measured {
  Answers answers;
  uint64_t tokens = 0;
  double seconds = 0;
  double tokens_per_second() const { return static_cast<double>(tokens) / seconds; }
};

// `batch` of them at once.
StatusOr<Measured> Answer(Engine& engine, std::span<const SequenceSpec> specs, uint32_t batch) {
  Measured measured;
  const MonoTime begin = RealClock().Now();
  for (; !specs.empty(); specs = specs.subspan(std::min<size_t>(batch, specs.size()))) {
    const auto together = specs.first(std::min<size_t>(batch, specs.size()));
    std::vector<std::shared_ptr<CollectingSink>> sinks;
    for (const SequenceSpec& spec : together) {
      sinks.push_back(std::make_shared<CollectingSink>());
      RETURN_IF_ERROR(engine.Submit(spec, sinks.back()));
    }
    for (size_t i = 0; i < together.size(); ++i) {
      const CollectingSink::Answer answer = sinks[i]->Wait();
      RETURN_IF_ERROR(answer.result.error);
      measured.tokens += answer.tokens.size();
      measured.answers[together[i].sampling.seed] = answer.ids();
    }
  }
  measured.seconds = Seconds(RealClock().Now() - begin);
  return measured;
}

// All of them, `times` times. INTERNAL where the answers are not those `wanted`.
StatusOr<Measured> AnswerAgain(Engine& engine, std::span<const SequenceSpec> specs, uint32_t batch,
                               uint32_t times, const Answers& wanted) {
  Measured all;
  for (uint32_t i = 0; i < times; ++i) {
    ASSIGN_OR_RETURN(const Measured once, Answer(engine, specs, batch));
    if (once.answers != wanted) return Internal("the answers differ");
    all.tokens += once.tokens;
    all.seconds += once.seconds;
  }
  return all;
}

std::string NameOf(const std::string& model) { return std::filesystem::path(model).stem().string(); }

// The answer's token with that chance, else another.
int32_t ForcedToken(const Answers& answers, uint64_t seed, uint64_t index, double right,
                    uint32_t vocab_size) {
  const std::vector<int32_t>& answer = answers.at(seed);
  const int32_t token = index < answer.size() ? answer[index] : 0;
  const bool is_right = RandomUniform(seed, index, kForcedStream) < right;
  return is_right ? token : (token + 1) % static_cast<int32_t>(vocab_size);
}

class Bench {
 public:
  explicit Bench(const Flags& flags) : flags_(flags) {}

  Status Run() {
    for (const std::string& part : flags_.parts) {
      ASSIGN_OR_RETURN(const std::vector<Setting> settings, SettingsOf(part));
      RETURN_IF_ERROR(RunPart(part, settings));
    }
    std::printf("\n%u of %u goals met\n", met_, met_ + missed_);
    return {};
  }

 private:
  std::vector<uint32_t> Batches(std::vector<uint32_t> of_the_part) const {
    return flags_.batch.empty() ? of_the_part : flags_.batch;
  }

  Setting OfDemo(const std::string& prompts, uint32_t batch) const {
    const bool is_story = prompts == "stories";
    return {.model = flags_.model,
            .drafter = "model",
            .draft_model = flags_.draft_model,
            .prompts = {.kind = prompts, .count = std::max(batch, is_story ? 8u : 32u), .output_tokens = 96},
            .batch = batch};
  }

  Setting OfNgram(const std::string& prompts, uint32_t batch) const {
    return {.model = flags_.model, .prompts = {.kind = prompts, .count = batch}, .batch = batch};
  }

  StatusOr<std::vector<Setting>> SettingsOf(const std::string& part) const {
    if (part == "shape") return ShapeSettings();
    std::vector<Setting> settings;
    if (part == "demo") {
      for (const char* prompts : {"tasks", "stories"})
        for (const uint32_t batch : Batches({1, 4, 16})) settings.push_back(OfDemo(prompts, batch));
    } else if (part == "free") {
      for (const uint32_t batch : Batches({1, 16})) {
        for (const double right : flags_.right) {
          Setting setting = OfNgram("random", batch);
          setting.drafter = "free";
          setting.right = right;
          settings.push_back(setting);
        }
      }
    } else if (part == "ngram") {
      for (const char* prompts : {"copy", "random"})
        for (const uint32_t batch : Batches({1, 4, 16})) settings.push_back(OfNgram(prompts, batch));
      ASSIGN_OR_RETURN(const std::string model, Synthesized("135m"));
      for (const char* prompts : {"copy", "random"}) {
        for (const uint32_t batch : Batches({1, 4})) {
          settings.push_back(OfNgram(prompts, batch));
          settings.back().model = model;
          if (settings.back().prompts.kind == "copy" && batch == 1) settings.back().goal = kCopyGoal;
        }
      }
    } else if (part == "load") {
      for (const uint32_t batch : Batches({1, 2, 4, 8, 16, 32, 64})) {
        for (const char* drafter : {"ngram", "model"}) {
          Setting setting = OfDemo("tasks", batch);
          setting.drafter = drafter;
          if (setting.drafter != "model") setting.draft_model = "";
          setting.prompts.count = std::max(batch, 64u);
          settings.push_back(setting);
        }
      }
    } else {
      settings = TreeSettings();
    }
    return settings;
  }

  // Each beside the same in chains.
  std::vector<Setting> TreeSettings() const {
    std::vector<Setting> chains;
    for (const uint32_t batch : Batches({1, 4})) {
      for (const char* prompts : {"tasks", "stories"}) chains.push_back(OfDemo(prompts, batch));
      for (const char* prompts : {"copy", "random"}) chains.push_back(OfNgram(prompts, batch));
      Setting forced = OfNgram("random", batch);
      forced.drafter = "free";
      forced.right = 0.5;
      forced.branch_right = 0.6;
      chains.push_back(forced);
    }
    std::vector<Setting> settings;
    for (const Setting& chain : chains) {
      settings.push_back(chain);
      settings.push_back(chain);
      settings.back().max_branch_tokens = flags_.max_branch_tokens;
    }
    return settings;
  }

  StatusOr<std::vector<Setting>> ShapeSettings() const {
    ASSIGN_OR_RETURN(const std::string model, Synthesized("1b"));
    ASSIGN_OR_RETURN(const std::string draft_model, Synthesized("135m"));
    std::vector<Setting> settings;
    for (const uint32_t batch : Batches({1})) {
      for (const double right : flags_.right) {
        settings.push_back(
            {.model = model,
             .drafter = "model",
             .draft_model = draft_model,
             .right = right,
             .prompts = {.kind = "copy", .count = batch, .prompt_tokens = 16, .output_tokens = 48},
             .batch = batch});
      }
    }
    return settings;
  }

  // Written once into the work folder.
  StatusOr<std::string> Synthesized(const std::string& shape) const {
    const std::string path = Concat(flags_.work_folder, "/", shape, "-q8_0-", kShapeVocabulary, ".gguf");
    if (std::filesystem::exists(path)) return path;
    std::error_code error;
    std::filesystem::create_directories(flags_.work_folder, error);
    if (error) return Unavailable(flags_.work_folder, " cannot be made: ", error.message());
    ModelToSynthesize request;
    request.path = path;
    request.dtype = DType::kQ8_0;
    request.seed = 1;
    request.text = ByteLevelText();
    ASSIGN_OR_RETURN(const ModelConfig config, FindModelShape(shape));
    ASSIGN_OR_RETURN(request.config,
                     ChangeShape(config, {.vocab = kShapeVocabulary, .context = kShapeContext}));
    request.threads = UsableCores();
    std::printf("writing %s\n", path.c_str());
    RETURN_IF_ERROR(Synthesize(request).status());
    return path;
  }

  // What is left of the part's time is shared by the lines that are left.
  Status RunPart(const std::string& part, const std::vector<Setting>& settings) {
    std::printf("\n%-6s %-17s %-8s %-10s %-5s %5s %5s %9s %9s %23s %8s %8s %6s %s\n", part.c_str(), "model",
                "prompts", "drafter", "right", "trees", "batch", "off tok/s", "on tok/s", "ratio", "accepted",
                "tok/pass", "rounds", "goal");
    const MonoTime begin = RealClock().Now();
    for (size_t i = 0; i < settings.size(); ++i) {
      const double left = flags_.part_seconds - Seconds(RealClock().Now() - begin);
      RETURN_IF_ERROR(
          RunSetting(settings[i], std::max(left, 0.0) / static_cast<double>(settings.size() - i)));
    }
    return {};
  }

  OpenEngineOptions Options(const Setting& setting) const {
    OpenEngineOptions options;
    options.model = setting.model;
    options.threads = flags_.threads;
    options.max_sequences = 2 * setting.batch;  // a branch has a place of its own
    options.max_step_tokens = std::max(256u, 8 * setting.batch);
    options.prefix_cache = false;  // every round computes the same
    options.device = "cpu";
    return options;
  }

  // What was learned of one setting is not carried into the next: each has engines of its own. `first`
  // outlives the engine.
  StatusOr<OpenedEngine> OpenDrafted(const Setting& setting, const Answers& first,
                                     uint32_t vocab_size) const {
    OpenEngineOptions options = Options(setting);
    options.speculation = {.drafter = setting.drafter == "free" ? "none" : setting.drafter,
                           .model = setting.draft_model,
                           .max_tokens = flags_.max_tokens,
                           .max_branch_tokens = setting.max_branch_tokens};
    const double right = setting.right.value_or(0);
    if (setting.drafter == "free") {
      options.make_drafter = [=, &first](const ModelFiles&) {
        FakeDrafter::Options fake{.answer =
                                      [&first](const DraftRequest& request, uint32_t index) {
                                        const std::vector<int32_t>& answer = first.at(request.sampling->seed);
                                        return index < answer.size() ? answer[index] : 0;
                                      },
                                  .right = [right](const DraftRequest&) { return right; },
                                  .vocab_size = vocab_size};
        if (setting.branch_right.has_value())
          fake.branch_right = [share = *setting.branch_right](const DraftRequest&) { return share; };
        return std::make_unique<FakeDrafter>(std::move(fake));
      };
    } else if (setting.right.has_value()) {
      options.wrap_draft_executor = [=, &first](std::unique_ptr<Executor> model) {
        return std::make_unique<ForcedExecutor>(std::move(model), [=, &first](const PlannedSequence& part) {
          return ForcedToken(first, part.sampling->seed, part.sample_index, right, vocab_size);
        });
      };
    }
    return OpenEngine(options);
  }

  Status RunSetting(const Setting& setting, double seconds) {
    const MonoTime begin = RealClock().Now();
    ASSIGN_OR_RETURN(const OpenedEngine off, OpenEngine(Options(setting)));
    PromptsWanted wanted = setting.prompts;
    wanted.vocab_size = off.files->config.vocab_size;
    wanted.seed = flags_.seed;
    ASSIGN_OR_RETURN(const std::vector<SequenceSpec> specs, MakePrompts(wanted, *off.files->text));
    ASSIGN_OR_RETURN(const Measured first, Answer(*off.engine, specs, setting.batch));
    ASSIGN_OR_RETURN(const OpenedEngine on, OpenDrafted(setting, first.answers, wanted.vocab_size));
    const auto times = static_cast<uint32_t>(std::ceil(kRoundSeconds / first.seconds));
    const auto answer = [&](Engine& engine) {
      return AnswerAgain(engine, specs, setting.batch, times, first.answers);
    };
    // The first steps of all tell what one takes.
    RETURN_IF_ERROR(answer(*on.engine).status());
    const SpeculationStats before = on.engine->Stats().speculation;
    std::vector<double> off_rates, on_rates, ratios;
    double round_seconds = 0;
    for (uint32_t round = 0; round < flags_.rounds; ++round) {
      const MonoTime round_begin = RealClock().Now();
      if (round >= kLeastRounds && Seconds(round_begin - begin) + round_seconds > seconds) break;
      double rates[2];  // off, on
      for (const uint32_t turn : {round % 2, (round + 1) % 2}) {
        ASSIGN_OR_RETURN(const Measured measured, answer(turn == 0 ? *off.engine : *on.engine));
        rates[turn] = measured.tokens_per_second();
      }
      off_rates.push_back(rates[0]);
      on_rates.push_back(rates[1]);
      ratios.push_back(on_rates.back() / off_rates.back());
      round_seconds = Seconds(RealClock().Now() - round_begin);
    }
    on.engine->Stop();
    Print(setting, off_rates, on_rates, ratios, on.engine->Stats().speculation.Since(before));
    return {};
  }

  void Print(const Setting& setting, const std::vector<double>& off, const std::vector<double>& on,
             const std::vector<double>& ratios, const SpeculationStats& stats) {
    const auto verified = static_cast<double>(SpeculationStats::Sum(stats.verified) + stats.branch_verified);
    const auto accepted = static_cast<double>(SpeculationStats::Sum(stats.accepted) + stats.branch_accepted);
    const bool is_met = Median(ratios) >= setting.goal;
    (is_met ? met_ : missed_) += 1;
    const std::string right = setting.right.has_value() ? Concat(*setting.right) : "own";
    std::printf(
        "%-6s %-17s %-8s %-10s %-5s %5u %5u %9.1f %9.1f %6.3f (%6.3f to %6.3f) %8.3f %8.2f %6zu %.2f %s\n",
        "", NameOf(setting.model).c_str(), setting.prompts.kind.c_str(), setting.drafter.c_str(),
        right.c_str(), setting.max_branch_tokens, setting.batch, Median(off), Median(on), Median(ratios),
        std::ranges::min(ratios), std::ranges::max(ratios), verified > 0 ? accepted / verified : 0,
        stats.tokens_per_pass(), ratios.size(), setting.goal, is_met ? "met" : "MISSED");
    if (stats.branch_verified > 0) {
      std::printf("%-6s second guesses: %llu tokens verified, %llu accepted\n", "",
                  static_cast<unsigned long long>(stats.branch_verified),
                  static_cast<unsigned long long>(stats.branch_accepted));
    }
    std::fflush(stdout);
  }

  const Flags flags_;
  uint32_t met_ = 0, missed_ = 0;  // goals
};

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Flags flags;
  CLI::App app("Answers with a drafter and without, in turns");
  app.add_option("--parts", flags.parts, "")
      ->delimiter(',')
      ->check(CLI::IsMember({"demo", "shape", "free", "ngram", "load", "trees"}))
      ->capture_default_str();
  app.add_option("--part-seconds", flags.part_seconds,
                 "of each part, but for three rounds a line and loading")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--rounds", flags.rounds, "of a line, at most")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--model", flags.model,
                 "a model folder or .gguf file, of all parts but shape and lines of ngram")
      ->capture_default_str();
  app.add_option("--draft-model", flags.draft_model, "of its drafter")->capture_default_str();
  app.add_option("--work-folder", flags.work_folder, "of the models that shape and ngram write, once")
      ->capture_default_str();
  app.add_option("--batch", flags.batch, "answers at once, instead of each part's own")
      ->delimiter(',')
      ->check(CLI::Range(1, 256));
  app.add_option("--right", flags.right, "chances of forced guesses")->delimiter(',')->capture_default_str();
  app.add_option("--max-tokens", flags.max_tokens, "of a draft")->check(CLI::Range(1, 64));
  app.add_option("--max-branch-tokens", flags.max_branch_tokens, "of a second guess, in trees")
      ->check(CLI::Range(1, 64));
  app.add_option("--threads", flags.threads, "0: all cores");
  app.add_option("--seed", flags.seed, "of prompts");
  CLI11_PARSE(app, argc, argv);
  const terrace::Status status = terrace::Bench(flags).Run();
  if (!status.ok()) std::fprintf(stderr, "%s\n", terrace::Message(status).c_str());
  return status.ok() ? 0 : 1;
}
