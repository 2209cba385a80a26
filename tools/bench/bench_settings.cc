#include "tools/bench/bench_settings.h"

#include <charconv>
#include <utility>

namespace terrace {
namespace {

constexpr uint32_t kMaxConcurrency = 65'536;
constexpr double kMaxRate = 1e6;
constexpr double kMaxSeconds = 30 * 24 * 3600;

Status ValidateShape(const ClosedLoop& loop) {
  if (loop.concurrency >= 1 && loop.concurrency <= kMaxConcurrency) return Status();
  return InvalidArgument("--concurrency: 1 to ", kMaxConcurrency, ", not ", loop.concurrency);
}

Status ValidateShape(const OpenLoop& loop) {
  if (!(loop.rate > 0 && loop.rate <= kMaxRate))
    return InvalidArgument("--rate: above 0 and at most ", kMaxRate, " requests/s, not ", loop.rate);
  if (loop.max_in_flight < 1 || loop.max_in_flight > kMaxConcurrency)
    return InvalidArgument("--max-in-flight: 1 to ", kMaxConcurrency, ", not ", loop.max_in_flight);
  return Status();
}

}  // namespace

Status Validate(const BenchSettings& settings) {
  if (settings.levels.empty() || settings.levels.size() > RequestKey::kMaxLevels) {
    return InvalidArgument("1 to ", RequestKey::kMaxLevels, " levels, not ", settings.levels.size());
  }
  for (const LoadShape& shape : settings.levels)
    RETURN_IF_ERROR(std::visit([](const auto& loop) { return ValidateShape(loop); }, shape));
  if (settings.requests.has_value() &&
      (*settings.requests < 1 || *settings.requests >= RequestKey::kMaxIndex))
    return InvalidArgument("--requests: 1 to ", RequestKey::kMaxIndex - 1);
  if (settings.warmup_requests >= RequestKey::kMaxIndex)
    return InvalidArgument("--warmup: at most ", RequestKey::kMaxIndex - 1);
  if (!settings.requests.has_value() && !settings.duration_seconds.has_value())
    return InvalidArgument("--requests or --duration must end a level");
  if (!(settings.temperature >= 0 && settings.temperature <= 2))
    return InvalidArgument("--temperature: 0 to 2");
  if (settings.priority < -100 || settings.priority > 100) return InvalidArgument("--priority: -100 to 100");
  return Validate(settings.workload);
}

StatusOr<double> ParseSeconds(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit = text.substr(end - text.data());
  double scale = 0;
  for (const auto& [name, seconds] : {std::pair{"", 1.0},
                                      {"s", 1.0},
                                      {"ms", 1e-3},
                                      {"us", 1e-6},
                                      {"\u00b5s", 1e-6},
                                      {"\u03bcs", 1e-6},
                                      {"m", 60.0},
                                      {"h", 3600.0}})
    if (unit == name) scale = seconds;
  if (error != std::errc() || scale == 0)
    return InvalidArgument("\"", text, "\" is not a time such as 30s, 500ms, 20us, 5m or 1h");
  if (!(value > 0 && value * scale <= kMaxSeconds))
    return InvalidArgument("\"", text, "\" is not above 0 and at most 30 days");
  return value * scale;
}

}  // namespace terrace
