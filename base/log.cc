#include "base/log.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <mutex>

#include "spdlog/logger.h"
#include "spdlog/pattern_formatter.h"
#include "spdlog/sinks/base_sink.h"

namespace terrace {
namespace {

constexpr std::array<std::string_view, 4> kLevelNames = {"debug", "info", "warn", "error"};
constexpr size_t kPieceBytes =
    4096;  // PIPE_BUF: a pipe that polls as writable takes this much without blocking
constexpr int kPatienceMillis = 100;  // how long one line may wait for a reader that does not read

std::atomic<uint64_t> all_dropped = 0;

// Standard error, written so that neither a missing nor a stuck reader can end or stop the process: lines
// that find no room are dropped, and the next one that does says how many.
class StderrSink : public spdlog::sinks::base_sink<std::mutex> {
 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    if (dropped_ > 0 &&
        Put(Concat(broken_ ? "\n" : "", "{\"event\":\"log_dropped\",\"lines\":", dropped_, "}\n"))) {
      dropped_ = 0;
    }
    if (dropped_ == 0 && Put(std::string_view(line.data(), line.size()))) return;
    ++dropped_;
    ++all_dropped;
  }
  void flush_() override {}

 private:
  bool Put(std::string_view text) {
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(dropped_ > 0 ? 0 : kPatienceMillis);
    const size_t size = text.size();
    while (!text.empty()) {
      const auto left =
          std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
      pollfd room = {.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
      const int ready = poll(&room, 1, std::max<int>(0, static_cast<int>(left.count())));
      if (ready < 0 && errno == EINTR) continue;
      const bool writable =
          ready == 1 && (room.revents & POLLOUT) != 0 && (room.revents & (POLLERR | POLLNVAL)) == 0;
      const ssize_t written =
          writable ? write(STDERR_FILENO, text.data(), std::min(text.size(), kPieceBytes)) : -1;
      if (written < 0 && writable && (errno == EINTR || errno == EAGAIN)) continue;
      if (written <= 0) {
        broken_ = broken_ || text.size() < size;
        return false;
      }
      text.remove_prefix(static_cast<size_t>(written));
    }
    broken_ = false;
    return true;
  }

  size_t dropped_ = 0;   // lines since the last one that went out
  bool broken_ = false;  // the last bytes out were the start of a line
};

struct Setup {
  LogOptions options;
  std::unique_ptr<spdlog::logger> logger;
  const Setup* previous = nullptr;  // kept, for threads that still log with it
};

const Setup* MakeSetup(const LogOptions& options, const Setup* previous) {
  auto setup = std::make_unique<Setup>();
  setup->options = options;
  setup->previous = previous;
  setup->logger = std::make_unique<spdlog::logger>("terrace", std::make_shared<StderrSink>());
  setup->logger->set_level(spdlog::level::trace);
  setup->logger->set_formatter(std::make_unique<spdlog::pattern_formatter>(
      options.as_json ? "{\"ts\":\"%Y-%m-%dT%H:%M:%S.%eZ\",%v" : "%H:%M:%S.%e %v",
      spdlog::pattern_time_type::utc));
  return setup.release();
}

// The process has one standard error, hence one setup. Never freed: other threads may log until the very end.
std::atomic<const Setup*>& CurrentSetup() {
  static std::atomic<const Setup*> setup = MakeSetup({.component = "", .level = LogLevel::kWarn}, nullptr);
  return setup;
}

std::string JsonLine(std::string_view level, std::string_view event, const std::string& component,
                     LogFields fields) {
  std::string line = Concat("\"level\":\"", level, "\",\"event\":");
  AppendJsonString(event, line);
  if (!component.empty()) {
    line += ",\"component\":";
    AppendJsonString(component, line);
  }
  for (const auto& [name, value] : fields) {
    line += ',';
    AppendJsonString(name, line);
    line += ':';
    AppendJsonText(value, line);
  }
  line += '}';
  return line;
}

std::string PlainLine(std::string_view level, std::string_view event, LogFields fields) {
  std::string line = Concat(level, std::string(6 - level.size(), ' '), event);
  for (const auto& [name, value] : fields) {
    const std::string text = ToJsonText(value);
    const bool bare = value.is_string() && text.size() > 2 &&
                      text.size() == value.get_ref<const std::string&>().size() + 2 &&
                      text.find_first_of(" =") == std::string::npos;
    line += Concat(" ", name, "=",
                   bare ? std::string_view(text).substr(1, text.size() - 2) : std::string_view(text));
  }
  return line;
}

}  // namespace

StatusOr<LogLevel> ParseLogLevel(std::string_view text) {
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    if (kLevelNames[i] == text) return static_cast<LogLevel>(i);
  }
  return InvalidArgument("log level \"", text, "\" is none of debug, info, warn, error");
}

void InitLog(const LogOptions& options) { CurrentSetup().store(MakeSetup(options, CurrentSetup().load())); }

uint64_t DroppedLogLines() { return all_dropped; }

bool IsLogged(LogLevel level) { return level >= CurrentSetup().load()->options.level; }

void Log(LogLevel level, std::string_view event, LogFields fields) try {
  const Setup& setup = *CurrentSetup().load();
  if (level < setup.options.level) return;
  const std::string_view name = kLevelNames[static_cast<size_t>(level)];
  const std::string line = setup.options.as_json ? JsonLine(name, event, setup.options.component, fields)
                                                 : PlainLine(name, event, fields);
  setup.logger->log(spdlog::level::info, spdlog::string_view_t(line.data(), line.size()));
} catch (const std::exception&) {
  // Out of memory while describing an event: the event is lost, the process goes on.
}

}  // namespace terrace
