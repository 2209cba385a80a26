#include "tools/cli/quantize_command_line.h"

#include <string>
#include <vector>

#include "tools/cli/option_values.h"

namespace terrace {
namespace {

constexpr uint32_t kMaxThreads = 1024;

// A check without CLI11's note about it in the help: the option's own text says it.
CLI::Validator Quiet(CLI::Validator check) { return check.description(""); }

template <typename Entries>
std::vector<std::string> Names(const Entries& entries) {
  std::vector<std::string> names;
  for (const auto& entry : entries) names.emplace_back(entry.name);
  return names;
}

}  // namespace

void AddQuantize(CLI::App& app, QuantizeOptions& options) {
  CLI::App* const quantize =
      app.add_subcommand("quantize", "Write a smaller model: its weights in 4 to 8 bits.");
  quantize->add_option("--model", options.model, "model folder or .gguf")->type_name("MODEL")->required();
  quantize
      ->add_option("--to", options.to,
                   "int4-g32, int4-g64, int4-g128, int8 (a folder), q8_0, q4_0, q4_k, q6_k (GGUF)")
      ->type_name("FORMAT")
      ->check(Quiet(CLI::IsMember(Names(kQuantizeTargets))))
      ->required();
  quantize->add_option("--out", options.out, "what to write, not there yet")->type_name("PATH")->required();
  quantize
      ->add_option(
          "--method", options.method,
          "rtn (nearest level), gptq (inputs that are left take over what rounding did), awq (columns "
          "scaled by what goes into them), awq-gptq, smoothquant")
      ->type_name("METHOD")
      ->check(Quiet(CLI::IsMember(Names(kQuantizeMethods))))
      ->capture_default_str();
  auto* const calibration =
      quantize
          ->add_option(
              "--calibration", options.calibration.path,
              "JSON lines of chats or plain texts like those that will be served; rtn can do without")
          ->type_name("FILE");
  quantize
      ->add_option("--samples", options.calibration.samples, "rows of it to take, drawn by --seed; 0: all")
      ->type_name(kWholeNumber)
      ->needs(calibration)
      ->capture_default_str();
  quantize->add_option("--seed", options.calibration.seed, "of the rows that are drawn")
      ->type_name(kWholeNumber)
      ->needs(calibration)
      ->capture_default_str();
  quantize
      ->add_option("--damping", options.damping,
                   "of gptq and awq-gptq: added to the diagonal of the Hessian, times its mean")
      ->type_name(kRealNumber)
      ->check(Quiet(CLI::Range(0.0, 1.0)))
      ->capture_default_str();
  quantize->add_flag("--act-order", options.act_order,
                     "of gptq and awq-gptq: round the inputs of the largest activations first");
  quantize->add_flag("--imatrix", options.imatrix,
                     "of rtn and smoothquant: weigh errors by activations when scales are chosen");
  quantize->add_option("--threads", options.threads, "default: all cores")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(1u, kMaxThreads)));
  quantize->footer(
      "Example: terrace quantize --model models/terrace-demo-base --to int4-g64 --out base-int4 "
      "--calibration models/eval/calibration.jsonl");
}

}  // namespace terrace
