#include "tools/cli/inspect_fit.h"

#include <optional>
#include <utility>
#include <vector>

#include "base/json.h"
#include "tools/cli/format.h"
#include "tools/cli/verdict.h"

namespace terrace {
namespace {

using Row = std::vector<std::string>;

std::string NameOf(const ParallelDegrees& degrees) {
  return Concat("TP ", degrees.tensor, " x PP ", degrees.pipeline);
}

std::string Rate(double tokens_per_second) {
  return FormatCount(static_cast<uint64_t>(tokens_per_second + 0.5));
}

Row RowOf(const SplitFit& fit) {
  Row row = {NameOf(fit.degrees), std::to_string(fit.replicas), fit.fits() ? "yes" : "no"};
  if (fit.weight_bytes == 0) {  // it cannot be split so
    row.insert(row.end(), 9, "-");
    return row;
  }
  row.insert(row.end(), {FormatBytes(fit.weight_bytes), FormatBytes(fit.workspace_bytes),
                         FormatBytes(fit.kv_bytes_per_token), FormatCount(fit.kv_tokens)});
  if (!fit.fits()) {  // and has no speed
    row.insert(row.end(), 5, "-");
    return row;
  }
  const StepEstimate& decode = fit.decode;
  row.insert(row.end(),
             {Rate(fit.decode_tokens_per_second), FormatSeconds(decode.seconds),
              FormatBytes(static_cast<uint64_t>(decode.sum_bytes)),
              Concat(FormatFixed(100 * (decode.sum_seconds + decode.send_seconds) / decode.seconds, 0), "%"),
              Rate(fit.prefill_tokens_per_second)});
  return row;
}

std::string DevicesText(const DeviceGroup& group) {
  const DeviceSpec& device = group.device;
  return Concat(group.count, group.count == 1 ? " device" : " devices", " of ",
                FormatBytes(device.memory_bytes), ", ", FormatSignificant(device.bytes_per_second / 1e12),
                " TB/s and ", FormatSignificant(device.operations_per_second / 1e12), " TFLOP/s",
                group.has_assumed_rates ? " as of the nearest device known, " : " as steps reach of ",
                device.name, "; messages between them in ", FormatSeconds(device.link.round_seconds),
                " and at ", FormatSignificant(1e-9 / device.link.seconds_per_byte),
                " GB/s, which is assumed\n");
}

std::string FormatFits(const ModelShape& shape, const DeviceGroup& group, const SplitFits& fits,
                       const CommandContext& context) {
  const FitOptions& options = fits.options;
  std::string out = Concat(context.Bold(shape.config.name), "\n", DevicesText(group));
  if (!shape.has_weights)
    out += Concat("there are no weights: matrices are taken as ", Info(shape.tensors.front().dtype).name,
                  " (--weights), but where the configuration says how layers are quantized\n");
  out += Concat(FormatCount(options.batch, "sequence"), " of ", FormatCount(options.context, "token"),
                " over all devices, keys and values in ", options.kv_dtype, "; prompts of ",
                FormatCount(options.prefill_tokens), "\n\n");
  std::vector<Row> rows = {{"split", "replicas", "fits", "weights", "workspace", "KV a token", "KV tokens",
                            "decode tok/s", "step", "sums sent", "telling", "prefill tok/s"}};
  std::string reasons;
  for (const SplitFit& fit : fits.splits) {
    rows.push_back(RowOf(fit));
    if (!fit.fits()) reasons += Concat(NameOf(fit.degrees), ": ", fit.why_not, "\n");
  }
  out += Concat(FormatTable(rows, 1), "\n", reasons);
  if (const std::optional<size_t> best = Recommend(fits.splits); best.has_value()) {
    const SplitFit& fit = fits.splits[*best];
    out += Concat("recommended: ", NameOf(fit.degrees), ", ", FormatCount(fit.replicas, "replica"),
                  ": of those that fit none is predicted to decode faster by more than 2%\n");
    if (fit.degrees.ranks() > 1)
      out += "which is a forecast: no group of ranks on GPUs was measured, and links are assumed\n";
  }
  return out;
}

Json StepToJson(const StepEstimate& step) {
  return {{"seconds", step.seconds},
          {"sum_seconds", step.sum_seconds},
          {"send_seconds", step.send_seconds},
          {"sum_bytes", step.sum_bytes},
          {"micro_batches", step.micro_batches},
          {"bubble", step.bubble}};
}

Json SplitToJson(const SplitFit& fit) {
  Json json = {{"tensor", fit.degrees.tensor},
               {"pipeline", fit.degrees.pipeline},
               {"replicas", fit.replicas},
               {"fits", fit.fits()}};
  if (!fit.fits()) json["why_not"] = fit.why_not;
  if (fit.weight_bytes == 0) return json;
  json["weight_bytes"] = fit.weight_bytes;
  json["workspace_bytes"] = fit.workspace_bytes;
  json["kv_bytes_per_token"] = fit.kv_bytes_per_token;
  json["kv_tokens"] = fit.kv_tokens;
  json["batch"] = fit.batch;
  json["decode"] = StepToJson(fit.decode);
  json["prefill"] = StepToJson(fit.prefill);
  json["decode_tokens_per_second"] = fit.decode_tokens_per_second;
  json["prefill_tokens_per_second"] = fit.prefill_tokens_per_second;
  return json;
}

}  // namespace

Json FitsToJson(const ModelShape& shape, const DeviceGroup& group, const SplitFits& fits) {
  const DeviceSpec& device = group.device;
  Json json = {{"model", shape.config.name},
               {"has_weights", shape.has_weights},
               {"devices",
                {{"count", group.count},
                 {"name", device.name},
                 {"has_assumed_rates", group.has_assumed_rates},
                 {"memory_bytes", device.memory_bytes},
                 {"bytes_per_second", device.bytes_per_second},
                 {"operations_per_second", device.operations_per_second},
                 {"message_seconds", device.link.round_seconds},
                 {"link_bytes_per_second", 1 / device.link.seconds_per_byte}}},
               {"batch", fits.options.batch},
               {"context", fits.options.context},
               {"prompt_tokens", fits.options.prefill_tokens},
               {"kv_dtype", fits.options.kv_dtype},
               {"splits", Json::array()},
               {"recommended", nullptr}};
  for (const SplitFit& fit : fits.splits) json["splits"].push_back(SplitToJson(fit));
  if (const std::optional<size_t> best = Recommend(fits.splits); best.has_value()) {
    const ParallelDegrees& degrees = fits.splits[*best].degrees;
    json["recommended"] = {{"tensor", degrees.tensor}, {"pipeline", degrees.pipeline}};
  }
  return json;
}

Status RunInspectFit(const std::string& model, const InspectFitOptions& options, bool as_json,
                     const CommandContext& context) {
  ASSIGN_OR_RETURN(const DeviceGroup group, ParseDevices(options.devices));
  std::optional<DType> dtype;
  if (!options.weights.empty()) {
    ASSIGN_OR_RETURN(dtype, ParseDType(options.weights));
  }
  ASSIGN_OR_RETURN(const ModelShape shape, ReadModelShape(model, dtype));
  ASSIGN_OR_RETURN(const SplitFits fits, FitSplits(shape, group, options.fit));
  context.out << (as_json ? ToJsonText(FitsToJson(shape, group, fits)) + "\n"
                          : FormatFits(shape, group, fits, context));
  if (!Recommend(fits.splits).has_value())
    return AnswerIsNo(Concat("no split of ", shape.config.name, " fits ", options.devices));
  return Status();
}

}  // namespace terrace
