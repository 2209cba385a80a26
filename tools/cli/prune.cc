#include "tools/cli/prune.h"

#include "base/clock.h"
#include "tools/cli/format.h"

namespace terrace {
namespace {

// In the order of kLinears.
constexpr size_t kKey = 1, kOutput = 3, kGate = 4, kDown = 6;
constexpr size_t kGpuHiddenMultiple = 64;  // docs/how-to/gpu.md

// Of a cut: what is left of the layer, and what the linears that read what went have lost.
std::string CutText(const Cut& cut, const LayerReport& layer) {
  const auto error = [&](size_t i) { return FormatFixed(layer.linears[i].relative_error, 4); };
  const std::string sizes =
      Concat("KV width ", layer.linears[kKey].shape[0], ", ", layer.linears[kGate].shape[0], " channels, ");
  if (cut.hidden > 0)
    return Concat("stream width ", layer.linears[kKey].shape[1], ", ", sizes, ErrorsText(layer));
  return Concat(sizes, "output ", error(kOutput), ", down ", error(kDown));
}

StatusOr<PruneRequest> MakeRequest(const PruneOptions& options, const CommandContext& context) {
  PruneRequest request;
  if (!options.method.empty()) {
    if (!options.cut.is_empty()) return InvalidArgument("--method is of --sparsity and --pattern");
    ASSIGN_OR_RETURN(request.method, Named(kPruneMethods, "--method", options.method));
  }
  request.pattern.share = options.sparsity;
  if (!options.pattern.empty()) {
    ASSIGN_OR_RETURN(const PrunePattern pattern, Named(kPrunePatterns, "--pattern", options.pattern));
    request.pattern.kept = pattern.kept;
    request.pattern.of = pattern.of;
  }
  request.cut = options.cut;
  request.repair = !options.no_repair;
  if (request.cut.is_empty()) {
    FillRequest(options, context, ErrorsText, request);
  } else {
    const auto text = [cut = request.cut](const LayerReport& layer) { return CutText(cut, layer); };
    FillRequest(options, context, text, request);
  }
  return request;
}

// What this machine's kernels read, which is as much as can be gained; whether it is, times tell.
std::string StepText(const PruneRequest& request, const PruneReport& report) {
  std::string text = Concat("a step on a CPU reads ", FormatBytes(report.step_bytes_after),
                            " of weights, of the model before ", FormatBytes(report.step_bytes_before));
  if (report.step_bytes_after > report.step_bytes_before)
    return Concat(
        text,
        ": it does not pay as it is: matrices that were quantized became F16, and columns that went "
        "break 2:4; quantize what came out (int8 keeps 2:4)");
  if (!request.cut.is_empty()) {
    if (report.step_bytes_after == report.step_bytes_before) text += ": it does not pay on CPUs";
    const size_t width = report.layers[0].linears[kKey].shape[1];
    if (request.cut.hidden > 0 && width % kGpuHiddenMultiple != 0)
      text += Concat("; CPU workers only: GPUs take widths that are multiples of ", kGpuHiddenMultiple);
    return text;
  }
  if (report.step_bytes_after < report.step_bytes_before)
    return Concat(text,
                  ": zeros are not read, and put back to multiply. Files and a CPU's prompts gain nothing");
  if (report.step_bytes_after == report.step_bytes_before && report.was_two_of_four)
    return Concat(text, ": as before: the model was 2:4 already");
  return Concat(text, ": nothing is skipped, so nothing is smaller or faster; ",
                request.pattern.has_groups() ? "only 2:4 of F16 or BF16, in rows of whole 32s, pays"
                                             : "zeros without a pattern never pay here");
}

// Channels go in blocks, and one stays of each layer: less or more than was asked for may have gone.
std::string FfnText(const Cut& cut, const PruneReport& report) {
  if (cut.ffn_share == 0) return "";
  return Concat("feed-forward channels: ", FormatFixed(100 * cut.ffn_share, 1), "% asked, ",
                FormatFixed(100 * report.ffn_removed, 1), "% removed, in blocks of ", cut.multiple,
                " of which one stays of each layer (--ffn-multiple)\n");
}

// Of a step that reads less than before; "" of others, which do not become faster.
std::string TimesText(const PruneOptions& options, const PruneReport& report, const CommandContext& context) {
  if (options.no_step_times || report.step_bytes_after >= report.step_bytes_before) return "";
  return StepTimesText(MeasureSteps(options, context));
}

}  // namespace

Status RunPrune(const PruneOptions& options, const CommandContext& context) {
  const MonoTime start = RealClock().Now();
  ASSIGN_OR_RETURN(const PruneRequest request, MakeRequest(options, context));
  const StatusOr<PruneReport> report = Prune(request);
  if (!report.ok()) return Explained(report.status());
  context.out << WorstText(*report) << options.out << ": " << FormatCount(report->parameters) << " -> "
              << FormatCount(report->parameters_after) << " parameters, " << FormatBytes(report->bytes_before)
              << " -> " << FormatBytes(report->bytes_after) << ", "
              << FormatSeconds(Seconds(RealClock().Now() - start)) << ", digest " << report->digest.Hex()
              << "\n"
              << FfnText(request.cut, *report) << CalibrationText(*report) << StepText(request, *report)
              << "\n"
              << TimesText(options, *report, context) << "report: " << report->path << "\n";
  return Status();
}

}  // namespace terrace
