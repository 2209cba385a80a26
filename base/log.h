// Structured logs: one JSON object a line on stderr,
// {"ts":"...Z","level":"info","event":"...","component":"router",...}. Thread-safe. InitLog once in main,
// before the first Log; before it (in tests) only warnings and errors are printed.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "base/json.h"
#include "base/status.h"

namespace terrace {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarn, kError };

struct LogOptions {
  std::string component;  // "router", "worker"
  LogLevel level = LogLevel::kInfo;
  bool as_json = true;  // false: "20:12:03.123 info  event key=value ..." for people
};

StatusOr<LogLevel> ParseLogLevel(std::string_view text);
void InitLog(const LogOptions& options);

using LogFields = std::initializer_list<std::pair<std::string_view, Json>>;

// `event` is a stable snake_case id: Log(LogLevel::kInfo, "model_loaded", {{"model", name},
// {"seconds", 1.5}}).
void Log(LogLevel level, std::string_view event, LogFields fields = {});
bool IsLogged(LogLevel level);
// How many lines this process has lost because nobody read standard error in time.
uint64_t DroppedLogLines();

}  // namespace terrace
