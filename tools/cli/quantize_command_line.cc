#include "tools/cli/quantize_command_line.h"

#include <charconv>
#include <cmath>
#include <string_view>

#include "tools/cli/option_values.h"
#include "tools/plan/constraints.h"

namespace terrace {
namespace {

// "20%" is 0.2.
StatusOr<double> ParsePercent(const std::string& text) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || std::string_view(rest, end) != "%" || !(value > 0 && std::isfinite(value)))
    return InvalidArgument("\"", text, "\" is not a share above 0 such as 20%");
  return value / 100;
}

void AddBudget(CLI::App& quantize, QuantizeBudget& budget) {
  auto* const fit =
      quantize
          .add_option_function<std::string>(
              "--fit",
              [&budget](const std::string& text) { budget.bytes = ValueOrThrow("--fit", ParseBytes(text)); },
              "mix formats: --to is the smallest one, and what loses most by it gets more bits, as far as "
              "all "
              "weights take at most this: 8GiB, 512MiB")
          ->type_name("SIZE");
  quantize
      .add_option_function<std::string>(
          "--faster",
          [&budget](const std::string& text) {
            budget.faster = ValueOrThrow("--faster", ParsePercent(text));
          },
          "the same, as far as tokens are decoded faster by at least this, by the bytes of weights that one "
          "reads: 20%; what it comes to here is measured at the end")
      ->type_name("PERCENT")
      ->excludes(fit);
  quantize
      .add_option("--sensitivity-tokens", budget.tokens,
                  "of --fit and --faster: calibration tokens, at most, by which it is measured what loses "
                  "most")
      ->type_name(kWholeNumber)
      ->check(Quiet(CLI::Range(size_t{1}, size_t{1} << 24)))
      ->capture_default_str();
}

}  // namespace

void AddQuantize(CLI::App& app, QuantizeOptions& options) {
  CLI::App* const quantize =
      app.add_subcommand("quantize", "Write a smaller model: its weights in 4 to 8 bits.");
  AddRewritePaths(*quantize, options);
  quantize
      ->add_option("--to", options.to,
                   "int4-g32, int4-g64, int4-g128, int8, fp8 (a folder), q8_0, q4_0, q4_k, q6_k (GGUF)")
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
      ->default_str("gptq; rtn for fp8");
  AddRewriteSettings(*quantize, options, "rtn can do without", "of gptq and awq-gptq");
  quantize->add_flag("--act-order", options.act_order,
                     "of gptq and awq-gptq: round the inputs of the largest activations first");
  quantize->add_flag("--imatrix", options.imatrix,
                     "of rtn and smoothquant: weigh errors by activations when scales are chosen");
  AddBudget(*quantize, options.budget);
  AddStepTimes(*quantize, options);
  quantize->footer(
      "Examples: terrace quantize --model models/terrace-demo-base --to int4-g64 --out base-int4 "
      "--calibration models/eval/calibration.jsonl\n"
      "          terrace quantize --model models/terrace-demo-base --to q4_k --fit 2.5MiB --out "
      "base-mixed.gguf "
      "--calibration models/eval/calibration.jsonl");
}

}  // namespace terrace
