#include "tools/cli/perplexity.h"

#include <algorithm>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "base/json.h"
#include "base/mapped_file.h"
#include "text/unicode.h"
#include "tools/cli/answered_text.h"
#include "tools/cli/format.h"
#include "tools/cli/progress_bar.h"
#include "tools/optimize/text_row.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

constexpr uint32_t kUsualWindow = 2048;

Status CheckTarget(const ModelTarget& target) {
  if (!target.is_in_process())
    return InvalidArgument("--perplexity: needs a model in this process (--model PATH)");
  if (target.device != "auto" && target.device != "cpu")
    return InvalidArgument("--perplexity: --device ", target.device, " is not CPUs, and those it runs on");
  if (target.compute == "fp8") return InvalidArgument("--perplexity: --compute fp8 is not for CPUs");
  if (target.drafter != "none")
    return InvalidArgument("--perplexity: nothing is generated that --drafter ", target.drafter,
                           " could guess");
  return Status();
}

// The windows that were asked for, or the usual ones, as a context of `context` tokens allows.
StatusOr<TextWindows> WindowsOf(const EvaluateOptions& options, uint32_t context) {
  TextWindows windows = {.window = options.window, .stride = options.stride};
  if (windows.window == 0) windows.window = std::min(context, kUsualWindow);
  if (windows.window < 2 || windows.window > context)
    return InvalidArgument("--window: ", windows.window, " is not 2 to the model's context of ", context);
  if (windows.stride == 0) windows.stride = windows.window / 2;
  if (windows.stride >= windows.window)
    return InvalidArgument("--stride: ", windows.stride, " is not below the window of ", windows.window);
  return windows;
}

Status CheckUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = DecodeUtf8(text.substr(at));
    if (!step.valid) return DataLoss("is not UTF-8 at byte ", at);
    at += step.length;
  }
  return Status();
}

StatusOr<AnsweredText> EncodeRow(std::string_view line, const TextAssets& text) {
  ASSIGN_OR_RETURN(const TextRow row, ParseTextRow(line));
  if (row.messages.empty()) return EncodePlain(text, row.text);
  return EncodeAnswered(text, row.messages, row.answer);
}

StatusOr<std::vector<AnsweredText>> LoadTexts(const std::string& path, uint32_t limit,
                                              const TextAssets& text) {
  ASSIGN_OR_RETURN(const std::string file, ReadFile(path));
  if (file.empty()) return DataLoss(path, ": has no text");
  if (!path.ends_with(".jsonl")) {
    RETURN_IF_ERROR(Annotate(CheckUtf8(file), path));
    return std::vector{EncodePlain(text, file)};
  }
  std::vector<AnsweredText> texts;
  for (const std::string_view line : SplitLines(file)) {
    if (limit > 0 && texts.size() == limit) break;
    auto row = EncodeRow(line, text);
    if (!row.ok()) {
      const Status error = DataLoss(path, ":", texts.size() + 1, ": ", Message(row.status()));
      return WithReason(error, Reason(row.status()));
    }
    texts.push_back(*std::move(row));
  }
  return texts;
}

StatusOr<TextPerplexity> MeasureFile(ScoringModel& model, const std::string& path,
                                     const std::vector<AnsweredText>& texts, const TextWindows& windows,
                                     const CommandContext& context) {
  size_t tokens = 0, before = 0;
  for (const AnsweredText& text : texts) tokens += text.tokens.size();
  ProgressBar bar(context, path);
  const auto on_window = [&](size_t done) {
    bar.Show(before + done, tokens);
    return context.shutdown.IsPending() ? Cancelled("interrupted") : Status();
  };
  TextPerplexity out = {.file = path, .texts = texts.size()};
  for (const AnsweredText& text : texts) {
    RETURN_IF_ERROR(Annotate(CheckTokens(text.tokens, model.files().config.vocab_size), path));
    auto surprises = Surprises(model, text.tokens, windows, on_window);
    if (!surprises.ok()) return Annotate(surprises.status(), path);
    out.all.Add(*surprises);
    // surprises[i] is of token i + 1.
    const size_t of_prompt = std::min(std::max<size_t>(text.answer_begin, 1) - 1, surprises->size());
    out.answers.Add(std::span(*surprises).subspan(of_prompt));
    before += text.tokens.size();
  }
  if (out.all.tokens == 0) return DataLoss(path, ": has no token behind another one");
  return out;
}

Json SurpriseJson(const Surprise& surprise) {
  return {{"tokens", surprise.tokens}, {"mean_nll", surprise.mean()}, {"perplexity", surprise.perplexity()}};
}

}  // namespace

StatusOr<PerplexityReport> MeasurePerplexity(const EvaluateOptions& options, const CommandContext& context) {
  RETURN_IF_ERROR(CheckTarget(options.target));
  ASSIGN_OR_RETURN(const TextAssets text, OpenText(options.target.model));
  std::vector<std::vector<AnsweredText>> files;  // first: what cannot be read is told before weights are
  for (const std::string& path : options.perplexity) {
    ASSIGN_OR_RETURN(files.emplace_back(), LoadTexts(path, options.limit, text));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<ScoringModel> model,
                   ScoringModel::Open({.model = options.target.model,
                                       .threads = options.target.threads,
                                       .max_tokens = options.window > 0 ? options.window : kUsualWindow,
                                       .compute = options.target.compute,
                                       .kv_dtype = options.target.kv_dtype,
                                       .is_cancelled = [&context] { return context.shutdown.IsPending(); }}));
  PerplexityReport report;
  ASSIGN_OR_RETURN(report.windows, WindowsOf(options, model->files().config.context_length));
  for (size_t i = 0; i < files.size(); ++i) {
    ASSIGN_OR_RETURN(report.files.emplace_back(),
                     MeasureFile(*model, options.perplexity[i], files[i], report.windows, context));
  }
  return report;
}

Status RunPerplexity(const EvaluateOptions& options, const CommandContext& context) {
  ASSIGN_OR_RETURN(const PerplexityReport report, MeasurePerplexity(options, context));
  if (options.json) {
    Json files = Json::array();
    for (const TextPerplexity& each : report.files) {
      Json file = SurpriseJson(each.all);
      file["file"] = each.file;
      file["texts"] = each.texts;
      if (each.answers.tokens > 0) file["answers"] = SurpriseJson(each.answers);
      files.push_back(std::move(file));
    }
    const Json json = {{"model", options.target.model},
                       {"window", report.windows.window},
                       {"stride", report.windows.stride},
                       {"files", files}};
    context.out << json.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
    return Status();
  }
  std::vector<std::vector<std::string>> rows = {{"perplexity", "texts", "tokens", "nats a token",
                                                 "perplexity", "answer tokens", "nats a token",
                                                 "perplexity"}};
  for (const TextPerplexity& each : report.files) {
    std::vector<std::string>& row =
        rows.emplace_back(std::vector<std::string>{each.file, FormatCount(each.texts)});
    for (const Surprise* part : {&each.all, &each.answers}) {
      const bool is_there = part->tokens > 0;
      row.push_back(is_there ? FormatCount(part->tokens) : "-");
      row.push_back(is_there ? FormatFixed(part->mean(), 4) : "-");
      row.push_back(is_there ? FormatFixed(part->perplexity(), 3) : "-");
    }
  }
  context.out << FormatTable(rows, /*right_from=*/1) << "windows of " << report.windows.window
              << " tokens, each " << report.windows.stride << " behind the one before\n";
  return Status();
}

}  // namespace terrace
