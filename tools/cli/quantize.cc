#include "tools/cli/quantize.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <vector>

#include "base/clock.h"
#include "base/machine.h"
#include "tools/cli/format.h"
#include "worker/formats/compressed_tensors.h"

namespace terrace {
namespace {

constexpr size_t kShownWorst = 5;

template <typename Entry, size_t kCount>
StatusOr<Entry> Named(const Entry (&entries)[kCount], const char* flag, const std::string& name) {
  for (const Entry& entry : entries) {
    if (entry.name == name) return entry;
  }
  return InvalidArgument(flag, ": \"", name, "\" is not known");
}

StatusOr<QuantizeRequest> MakeRequest(const QuantizeOptions& options, const CommandContext& context) {
  QuantizeRequest request;
  request.model = options.model;
  request.out = options.out;
  ASSIGN_OR_RETURN(request.target, Named(kQuantizeTargets, "--to", options.to));
  ASSIGN_OR_RETURN(request.method, Named(kQuantizeMethods, "--method", options.method));
  if (options.imatrix && request.method.searches_levels)
    return InvalidArgument("--imatrix: --method ", request.method.name,
                           " weighs errors by activations anyway");
  request.method.searches_levels |= options.imatrix;
  request.calibration = options.calibration;
  request.damping = options.damping;
  request.act_order = options.act_order;
  request.threads = options.threads > 0 ? options.threads : UsableCores();
  request.is_cancelled = [&context] { return context.shutdown.IsPending(); };
  return request;
}

// "query 0.0312, key 0.0290, ...": what linears are called follows from their order.
std::string ErrorsText(const LayerReport& layer) {
  constexpr const char* kShort[] = {"query", "key", "value", "output", "gate", "up", "down"};
  std::string out;
  for (size_t i = 0; i < layer.linears.size() && i < std::size(kShort); ++i)
    out += Concat(i == 0 ? "" : ", ", kShort[i], " ", FormatFixed(layer.linears[i].relative_error, 4));
  return out;
}

std::string WorstText(const QuantizeReport& report, const QuantizeTarget& target) {
  std::vector<const LinearReport*> linears;
  for (const LayerReport& layer : report.layers) {
    for (const LinearReport& linear : layer.linears) linears.push_back(&linear);
  }
  std::ranges::stable_sort(linears, std::ranges::greater(), &LinearReport::relative_error);
  linears.resize(std::min(linears.size(), kShownWorst));
  std::vector<std::vector<std::string>> rows = {{"largest errors", "dtype", "relative"}};
  for (const LinearReport* linear : linears)
    rows.push_back(
        {linear->name, FormatName(linear->dtype, target.group), FormatFixed(linear->relative_error, 4)});
  return FormatTable(rows, 2);
}

}  // namespace

Status RunQuantize(const QuantizeOptions& options, const CommandContext& context) {
  const MonoTime start = RealClock().Now();
  ASSIGN_OR_RETURN(QuantizeRequest request, MakeRequest(options, context));
  MonoTime last = start;
  request.on_layer = [&](const LayerReport& layer) {
    const MonoTime now = RealClock().Now();
    context.out << "layer " << layer.layer + 1 << "/" << layer.layers << "  " << ErrorsText(layer) << "  "
                << (layer.was_kept ? "kept" : FormatSeconds(Seconds(now - last))) << "\n"
                << std::flush;
    last = now;
    return context.shutdown.IsPending() ? Cancelled("interrupted") : Status();
  };
  const StatusOr<QuantizeReport> report = Quantize(request);
  if (report.status().code() == StatusCode::kCancelled)
    return Cancelled("interrupted; the same command goes on where this one was");
  if (!report.ok()) return report.status();
  const double bits = 8 * static_cast<double>(report->bytes_after) / static_cast<double>(report->parameters);
  context.out << WorstText(*report, request.target) << options.out << ": " << FormatCount(report->parameters)
              << " parameters, " << FormatBytes(report->bytes_before) << " -> "
              << FormatBytes(report->bytes_after) << ", " << FormatFixed(bits, 2) << " bits a weight, "
              << FormatSeconds(Seconds(RealClock().Now() - start)) << ", digest " << report->digest.Hex()
              << "\nreport: " << report->path << "\n";
  return Status();
}

}  // namespace terrace
