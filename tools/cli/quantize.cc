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

StatusOr<QuantizeRequest> MakeRequest(const QuantizeOptions& options, const CommandContext& context) {
  QuantizeRequest request;
  ASSIGN_OR_RETURN(request.target, Named(kQuantizeTargets, "--to", options.to));
  ASSIGN_OR_RETURN(request.method, Named(kQuantizeMethods, "--method", options.method));
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
              << "\nreport: " << report->path << "\n";
  return Status();
}

}  // namespace terrace
