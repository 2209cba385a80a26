#include "tests/bench/speculation_prompts.h"

#include <algorithm>
#include <fstream>
#include <random>

#include "base/json.h"

namespace terrace {
namespace {

using Tokens = std::vector<int32_t>;

constexpr char kTasks[] = "models/eval/validation.jsonl", kStories[] = "models/eval/calibration.jsonl";
// Tokens of a story that are its prompt.
constexpr size_t kStoryBeginning = 8;
// Tokens that come again and again in a copy.
constexpr size_t kPassage = 16;

StatusOr<std::vector<Json>> ReadRows(const std::string& path) {
  std::ifstream file(path);
  if (!file) return NotFound(path, " cannot be read: run from the repository's root");
  std::vector<Json> rows;
  for (std::string line; std::getline(file, line);) {
    ASSIGN_OR_RETURN(Json row, ParseJson(line));
    rows.push_back(std::move(row));
  }
  return rows;
}

StatusOr<std::vector<Tokens>> TaskPrompts(const TextAssets& text) {
  ASSIGN_OR_RETURN(const std::vector<Json> rows, ReadRows(kTasks));
  std::vector<Tokens> prompts;
  for (const Json& row : rows) {
    std::vector<ChatMessage> messages;
    for (const Json& message : row["messages"])
      messages.push_back(
          {.role = message["role"].get<std::string>(), .content = message["content"].get<std::string>()});
    ASSIGN_OR_RETURN(Tokens prompt, text.EncodeChat(messages));
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

StatusOr<std::vector<Tokens>> StoryPrompts(const TextAssets& text) {
  ASSIGN_OR_RETURN(const std::vector<Json> rows, ReadRows(kStories));
  std::vector<Tokens> prompts;
  for (const Json& row : rows) {
    if (row["checker"] != "none") continue;
    prompts.push_back(text.EncodePrompt(row["expected"].get<std::string>()));
    prompts.back().resize(std::min(prompts.back().size(), kStoryBeginning));
  }
  return prompts;
}

std::vector<Tokens> RandomPrompts(const PromptsWanted& wanted, bool repeats, std::mt19937& random) {
  std::vector<Tokens> prompts(wanted.count);
  for (Tokens& prompt : prompts) {
    while (prompt.size() < wanted.prompt_tokens) {
      prompt.push_back(repeats && prompt.size() >= kPassage
                           ? prompt[prompt.size() - kPassage]
                           : static_cast<int32_t>(random() % wanted.vocab_size));
    }
  }
  return prompts;
}

}  // namespace

StatusOr<std::vector<SequenceSpec>> MakePrompts(const PromptsWanted& wanted, const TextAssets& text) {
  std::mt19937 random(wanted.seed);
  std::vector<Tokens> prompts;
  if (wanted.kind == "tasks") {
    ASSIGN_OR_RETURN(prompts, TaskPrompts(text));
  } else if (wanted.kind == "stories") {
    ASSIGN_OR_RETURN(prompts, StoryPrompts(text));
  } else {
    prompts = RandomPrompts(wanted, /*repeats=*/wanted.kind == "copy", random);
  }
  if (prompts.empty()) return DataLoss("no prompts of kind ", wanted.kind);
  std::ranges::shuffle(prompts, random);
  std::vector<SequenceSpec> specs(wanted.count);
  for (uint32_t i = 0; i < wanted.count; ++i) {
    SequenceSpec& spec = specs[i];
    spec.prompt = prompts[i % prompts.size()];
    spec.max_tokens = wanted.output_tokens;
    spec.ignore_eos = wanted.kind != "tasks";
    spec.sampling.temperature = wanted.kind == "random" ? 1.0f : 0.0f;
    spec.sampling.seed = i + 1;
  }
  return specs;
}

}  // namespace terrace
