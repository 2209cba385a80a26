#include "tools/cli/distill_command_line.h"

#include <map>
#include <string>

#include "base/json.h"
#include "tools/cli/option_values.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxThreads = 1024;

CLI::Option* AddNumber(CLI::App& command, const char* flag, double& value, const char* text) {
  return command.add_option(flag, value, text)->type_name(kRealNumber)->capture_default_str();
}

template <typename T>
CLI::Option* AddCount(CLI::App& command, const char* flag, T& value, const char* text) {
  return command.add_option(flag, value, text)->type_name(kWholeNumber)->capture_default_str();
}

void AddModels(CLI::App& command, DistillRequest& request) {
  command.add_option("--teacher", request.teacher, "model folder or .gguf that is learned from")
      ->type_name("MODEL")
      ->required();
  auto* const student =
      command
          .add_option("--student", request.student,
                      "model to go on from, such as a pruned one; with the teacher's tokenizer")
          ->type_name("MODEL");
  auto* const config =
      command.add_option("--config", request.config, "or a config.json: a fresh student of this shape")
          ->type_name("FILE")
          ->excludes(student);
  command.add_option("--layers", request.layers, "or the teacher with so many of its layers, evenly spread")
      ->type_name(kWholeNumber)
      ->check(AboveZero())
      ->excludes(student)
      ->excludes(config);
  command
      .add_option_function<std::string>(
          "--as", [&request](const std::string&) { request.is_draft = true; },
          "draft: a model that drafts for the teacher; how many of its tokens would be accepted is measured, "
          "and "
          "without one of the three above it is fresh, with a quarter of the teacher's heads and half of its "
          "layers")
      ->type_name("PURPOSE")
      ->check(Quiet(CLI::IsMember({"draft"})));
  command.add_option("--out", request.out, "folder to write, not there yet")->type_name("PATH")->required();
  const std::map<std::string, DType> dtypes = {
      {"f32", DType::kF32}, {"f16", DType::kF16}, {"bf16", DType::kBF16}};
  command
      .add_option_function<std::string>(
          "--dtype", [&request, dtypes](const std::string& name) { request.dtype = dtypes.at(name); },
          "of the matrices that are written: f32, f16 (default), bf16")
      ->type_name("TYPE")
      ->check(Quiet(CLI::IsMember(dtypes)));
}

void AddText(CLI::App& command, DistillRequest& request) {
  command
      .add_option("--data", request.data, "JSON lines of chats with answers, or plain texts; may be repeated")
      ->type_name("FILE")
      ->required()
      ->allow_extra_args(false);
  command
      .add_option("--validation", request.validation,
                  "rows to measure on (default: rows of --data, held out)")
      ->type_name("FILE");
  AddCount(command, "--validation-rows", request.validation_rows, "at most, drawn by --seed");
  AddCount(command, "--max-tokens", request.max_tokens, "longer rows are cut; 0: at the models' contexts");
  AddNumber(command, "--prompt-weight", request.trainer.loss.rows.prompt,
            "of the tokens of a chat's prompt; those of answers weigh 1");
  AddNumber(command, "--text-weight", request.trainer.loss.rows.text, "of the tokens of plain texts");
}

void AddLoss(CLI::App& command, DistillRequest& request) {
  LossOptions& loss = request.trainer.loss;
  AddNumber(
      command, "--kl-weight", loss.kl_weight,
      "share of the loss that is divergence from the teacher, the rest is of the text's own tokens; 0: the "
      "teacher is only compared with");
  command
      .add_option_function<std::string>(
          "--kl", [&loss](const std::string& name) { loss.is_reverse = name == "reverse"; },
          "forward (default): KL(teacher || student), or reverse")
      ->type_name("KIND")
      ->check(Quiet(CLI::IsMember({"forward", "reverse"})));
  AddNumber(command, "--temperature", loss.temperature, "that both distributions are softened by");
  AddNumber(command, "--hidden-weight", loss.hidden_weight,
            "of the squared distance of last hidden states, behind a learned projection");
  command
      .add_option(
          "--teacher-cache", request.teacher_cache,
          "file of the teacher's likeliest tokens, made where it is not there: then the teacher runs once")
      ->type_name("FILE");
  AddCount(command, "--top-k", request.top_k, "tokens of each position in it");
}

void AddTraining(CLI::App& command, DistillOptions& options) {
  DistillRequest& request = options.request;
  AddCount(command, "--tokens", request.tokens, "to train on, about; 0: each row once");
  AddCount(command, "--batch-tokens", request.batch_tokens, "of a step, about");
  AddCount(command, "--memory-tokens", request.memory_tokens, "of a step that are in memory at a time");
  AddNumber(command, "--learning-rate", request.learning_rate, "the highest; it falls to a tenth");
  AddNumber(command, "--warmup", request.warmup, "share of the steps in which it rises");
  AddNumber(command, "--weight-decay", request.trainer.weight_decay, "of matrices, as of AdamW");
  AddNumber(command, "--clip", request.trainer.clip, "largest norm of a step's gradient");
  AddCount(command, "--seed", request.seed, "of the order of rows, the held-out ones and fresh weights");
  AddCount(command, "--checkpoint-steps", request.checkpoint_steps, "between checkpoints");
  command.add_option("--threads", options.threads, "default: all cores")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(1u, kMaxThreads)));
}

}  // namespace

void AddDistill(CLI::App& app, DistillOptions& options) {
  CLI::App* const distill = app.add_subcommand(
      "distill", "Train a small model by what a large one says (needs a build with --with-distill).");
  AddModels(*distill, options.request);
  AddText(*distill, options.request);
  AddLoss(*distill, options.request);
  AddTraining(*distill, options);
  distill->footer(
      "Examples: terrace distill --teacher models/terrace-demo-base --layers 2 --data train.jsonl --out "
      "base-2\n"
      "          terrace distill --teacher models/terrace-demo-base --as draft --data train.jsonl --out "
      "draft");
}

}  // namespace terrace
