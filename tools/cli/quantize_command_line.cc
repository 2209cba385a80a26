#include "tools/cli/quantize_command_line.h"

#include "tools/cli/option_values.h"

namespace terrace {

void AddQuantize(CLI::App& app, QuantizeOptions& options) {
  CLI::App* const quantize =
      app.add_subcommand("quantize", "Write a smaller model: its weights in 4 to 8 bits.");
  AddRewritePaths(*quantize, options);
  quantize
      ->add_option("--to", options.to,
                   "int4-g32, int4-g64, int4-g128, int8 (a folder), q8_0, q4_0, q4_k, q6_k (GGUF)")
      ->type_name("FORMAT")
      ->check(Quiet(CLI::IsMember(Names(kQuantizeTargets))))
      ->required();
  quantize
      ->add_option(
          "--method", options.method,
          "rtn (nearest level), gptq (inputs that are left take over what rounding did), awq (columns "
          "scaled by what goes into them), awq-gptq, smoothquant")
      ->type_name("METHOD")
      ->check(Quiet(CLI::IsMember(Names(kQuantizeMethods))))
      ->capture_default_str();
  AddRewriteSettings(*quantize, options, "rtn can do without", "of gptq and awq-gptq");
  quantize->add_flag("--act-order", options.act_order,
                     "of gptq and awq-gptq: round the inputs of the largest activations first");
  quantize->add_flag("--imatrix", options.imatrix,
                     "of rtn and smoothquant: weigh errors by activations when scales are chosen");
  quantize->footer(
      "Example: terrace quantize --model models/terrace-demo-base --to int4-g64 --out base-int4 "
      "--calibration models/eval/calibration.jsonl");
}

}  // namespace terrace
