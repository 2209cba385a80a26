// What tests of commands that rewrite a model have in common.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "tools/optimize/model_rewriter.h"
#include "worker/model/model_testing.h"

namespace terrace {

inline constexpr char kNano[] = "terrace-demo-nano";
inline constexpr char kRows[] = "models/eval/calibration.jsonl";

// The names of what is in a folder, sorted.
inline std::vector<std::string> EntriesOf(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename());
  std::ranges::sort(names);
  return names;
}

// The bytes of all files of a model that `command` wrote, and of its report.
inline std::map<std::string, std::string> BytesOf(const std::string& out, const std::string& command) {
  std::map<std::string, std::string> files = {
      {"report", ReadFile(Concat(out, ".", command, ".json")).value()}};
  if (!std::filesystem::is_directory(out)) {
    files["model"] = ReadFile(out).value();
    return files;
  }
  for (const auto& entry : std::filesystem::directory_iterator(out))
    files[entry.path().filename()] = ReadFile(entry.path()).value();
  return files;
}

// Of all linears.
inline double MeanError(const RewriteReport& report) {
  double sum = 0, count = 0;
  for (const LayerReport& layer : report.layers) {
    for (const LinearReport& linear : layer.linears) sum += linear.relative_error, ++count;
  }
  return sum / count;
}

// The first `count` rows of nano's golden file as tokens: prompts with their answers.
inline std::vector<std::vector<int32_t>> GoldenTexts(size_t count) {
  std::vector<std::vector<int32_t>> texts;
  for (const GoldenRow& row : GoldenRows(kNano)) {
    if (texts.size() == count) break;
    texts.push_back(row.prompt);
    texts.back().insert(texts.back().end(), row.answer.begin(), row.answer.end());
  }
  return texts;
}

// Mean KL divergence of a model from nano over these texts, in nats a token.
inline double Divergence(const std::string& path, const std::vector<std::vector<int32_t>>& texts) {
  const ModelFiles before = OpenTestModel(DemoFolder(kNano)), after = OpenTestModel(path);
  TestModel exact(before.config, *before.weights, CpuOps(), /*threads=*/2),
      rewritten(after.config, *after.weights, CpuOps(), /*threads=*/2);
  const size_t vocab = before.config.vocab_size;
  double divergence = 0;
  size_t positions = 0;
  for (const std::vector<int32_t>& tokens : texts) {
    const auto a = SequenceLogits(exact, tokens), b = SequenceLogits(rewritten, tokens);
    for (size_t i = 0; i < tokens.size(); ++i, ++positions) {
      const auto p = Logprobs(std::span(a).subspan(i * vocab, vocab));
      const auto q = Logprobs(std::span(b).subspan(i * vocab, vocab));
      for (size_t k = 0; k < vocab; ++k) divergence += std::exp(p[k]) * (p[k] - q[k]);
    }
  }
  return divergence / static_cast<double>(positions);
}

}  // namespace terrace
