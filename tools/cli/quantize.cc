#include "tools/cli/quantize.h"

#include "base/clock.h"
#include "tools/cli/format.h"

namespace terrace {
namespace {

// "INT8, F16, INT4_G64, INT8": the formats of the linears of each input, and their errors.
std::string MixedText(const LayerReport& layer) {
  std::string formats;
  for (const LinearInput input : kLinearInputs) {
    const LinearReport& linear = layer.linears[PlaceOf(LinearsOf(input)[0])];
    formats += Concat(formats.empty() ? "" : ", ", linear.dtype);
  }
  return Concat(formats, ";  ", ErrorsText(layer));
}

std::string MethodOf(const QuantizeOptions& options) {
  if (!options.method.empty()) return options.method;
  return options.to == "fp8" ? "rtn" : "gptq";
}

// What a budget came to.
std::string MixtureText(const QuantizeBudget& budget, const MixtureReport& mixture) {
  std::string text = budget.bytes > 0
                         ? Concat(FormatBytes(mixture.bytes), " of ", FormatBytes(budget.bytes), " at most")
                         : Concat(FormatFixed(100 * mixture.faster, 1), "% faster of ",
                                  FormatFixed(100 * budget.faster, 1), "% asked");
  text += Concat("; predicted divergence ", FormatFixed(mixture.predicted_divergence, 4), "\n");
  if (mixture.is_all_floats)
    text += "the budget has room for the layers' matrices as floats: none was quantized\n";
  return text;
}

// Of FP8 where it is opened on CPUs, which hold its matrices in 16 bits.
uint64_t BytesAsBf16(const QuantizeReport& report) {
  uint64_t bytes = report.bytes_after;
  for (const LayerReport& layer : report.layers) {
    for (const LinearReport& linear : layer.linears) bytes += *ElementCount(linear.shape);
  }
  return bytes;
}

StatusOr<QuantizeRequest> MakeRequest(const QuantizeOptions& options, const CommandContext& context) {
  QuantizeRequest request;
  ASSIGN_OR_RETURN(request.target, Named(kQuantizeTargets, "--to", options.to));
  ASSIGN_OR_RETURN(request.method, Named(kQuantizeMethods, "--method", MethodOf(options)));
  if (options.imatrix && request.method.searches_levels)
    return InvalidArgument("--imatrix: --method ", request.method.name,
                           " weighs errors by activations anyway");
  request.method.searches_levels |= options.imatrix;
  request.act_order = options.act_order;
  request.budget = options.budget;
  request.on_measured = [&context](uint32_t layer, uint32_t layers) {
    context.out << "sensitivity of layer " << layer + 1 << "/" << layers << "\n" << std::flush;
    return context.shutdown.IsPending() ? Cancelled("interrupted") : Status();
  };
  FillRequest(options, context, options.budget.is_set() ? MixedText : ErrorsText, request);
  return request;
}

}  // namespace

std::string FasterText(double asked, std::span<const ComparedSteps> steps) {
  const double measured = 1 / steps.front().ratio - 1;
  std::string text = Concat("one answer is decoded ", FormatFixed(100 * measured, 1), "% faster, ",
                            FormatFixed(100 * asked, 1), "% asked");
  if (measured < asked)
    text +=
        ": less than the bytes say, as where matrices stay in the cache; ask for more, or measure where "
        "it will be served";
  return text + "\n";
}

Status RunQuantize(const QuantizeOptions& options, const CommandContext& context) {
  const MonoTime start = RealClock().Now();
  ASSIGN_OR_RETURN(const QuantizeRequest request, MakeRequest(options, context));
  const StatusOr<QuantizeReport> report = Quantize(request);
  if (!report.ok()) return Explained(report.status());
  const double bits = 8 * static_cast<double>(report->bytes_after) / static_cast<double>(report->parameters);
  context.out << WorstText(*report) << options.out << ": " << FormatCount(report->parameters)
              << " parameters, " << FormatBytes(report->bytes_before) << " -> "
              << FormatBytes(report->bytes_after) << ", " << FormatFixed(bits, 2) << " bits a weight, "
              << FormatSeconds(Seconds(RealClock().Now() - start)) << ", digest " << report->digest.Hex()
              << "\n";
  if (request.target.is_fp8)
    context.out << "on CPUs it takes about " << FormatBytes(BytesAsBf16(*report)) << ", as BF16\n";
  if (options.budget.is_set()) context.out << MixtureText(options.budget, report->mixture);
  if (options.budget.faster > 0 && !options.no_step_times) {
    const auto steps = MeasureSteps(options, context);
    context.out << StepTimesText(steps) << (steps.ok() ? FasterText(options.budget.faster, *steps) : "");
  }
  context.out << CalibrationText(*report) << "report: " << report->path << "\n";
  return Status();
}

}  // namespace terrace
