#include "base/failpoint.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <utility>

#include "base/exit_code.h"

namespace terrace {
namespace {

using Action = Failpoints::Action;

constexpr char kVariable[] = "TERRACE_FAILPOINTS";  // e2e tests look for this text in a binary

template <typename Number>
std::optional<Number> ToNumber(std::string_view text) {
  Number number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

Action ToAction(std::string_view text) {
  if (text == "kill") return Action::kKill;
  if (text == "stop") return Action::kStop;
  return text == "error" ? Action::kError : Action::kNone;
}

[[noreturn]] void Refuse(const Status& error) {
  std::fprintf(stderr, "%s: %s\n", kVariable, Message(error).c_str());
  std::_Exit(kExitConfig);
}

Failpoints FromEnvironment() {
  const char* const text = std::getenv(kVariable);
  auto armed = Failpoints::Parse(text == nullptr ? "" : text);
  if (!armed.ok()) Refuse(armed.status());
  return *std::move(armed);
}

void Signal(std::string_view name, const char* what, int number) {
  std::fprintf(stderr, "failpoint %.*s: %s\n", static_cast<int>(name.size()), name.data(), what);
  kill(getpid(), number);
}

}  // namespace

StatusOr<Failpoints> Failpoints::Parse(std::string_view text) {
  Failpoints out;
  while (!text.empty()) {
    const std::string_view entry = text.substr(0, text.find(';'));
    text.remove_prefix(std::min(entry.size() + 1, text.size()));
    if (entry.empty()) continue;
    ASSIGN_OR_RETURN(Fault fault, ParseFault(entry));
    out.faults_.push_back(std::move(fault));
  }
  return out;
}

StatusOr<Failpoints::Fault> Failpoints::ParseFault(std::string_view text) {
  const Status wrong = InvalidArgument("\"", text, "\" is not NAME[:VALUE]=kill|stop|error[@N], N from 1");
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos) return wrong;
  const std::string_view place = text.substr(0, equals), what = text.substr(equals + 1);
  const size_t colon = place.find(':'), at = what.find('@');
  Fault fault{.name = std::string(place.substr(0, colon)), .action = ToAction(what.substr(0, at))};
  if (fault.name.empty() || fault.action == Action::kNone) return wrong;
  if (colon != std::string_view::npos) {
    fault.value = ToNumber<int32_t>(place.substr(colon + 1));
    if (!fault.value.has_value()) return wrong;
  }
  if (at != std::string_view::npos) {
    fault.at = ToNumber<uint64_t>(what.substr(at + 1)).value_or(0);
    if (fault.at == 0) return wrong;
  }
  return fault;
}

Status Failpoints::Check(std::span<const FailpointPlace> places) const {
  for (const Fault& fault : faults_) {
    const auto place = std::ranges::find(places, fault.name, &FailpointPlace::name);
    if (place == places.end()) {
      std::string known;
      for (const FailpointPlace& each : places) known += Concat(known.empty() ? "" : ", ", each.name);
      return InvalidArgument("there is no place \"", fault.name, "\", known: ", known);
    }
    if (fault.value.has_value() && !place->has_values)
      return InvalidArgument(fault.name, " has no values, got :", *fault.value);
    if (fault.action == Action::kError && !place->takes_error)
      return InvalidArgument(fault.name, " can give no error, only kill or stop");
  }
  return {};
}

Action Failpoints::Reach(std::string_view name, std::span<const int32_t> values) {
  Action worst = Action::kNone;
  for (Fault& fault : faults_) {
    if (fault.name != name) continue;
    if (fault.value.has_value() && std::find(values.begin(), values.end(), *fault.value) == values.end())
      continue;
    ++fault.reached;
    if (fault.at == 0 || fault.at == fault.reached) worst = std::max(worst, fault.action);
  }
  return worst;
}

namespace failpoint_internal {

void Arm() {
  if (const Status wrong = FromEnvironment().Check(kFailpointPlaces); !wrong.ok()) Refuse(wrong);
}

Status Reach(std::string_view name, std::span<const int32_t> values) {
  static std::mutex mutex;
  static Failpoints& armed = *new Failpoints(FromEnvironment());  // for threads that outlive main's return
  Action action;
  {
    std::lock_guard lock(mutex);
    action = armed.Reach(name, values);
  }
  switch (action) {
    case Action::kNone:
      break;
    case Action::kError:
      return WithReason(Internal("failpoint ", name), "failpoint");
    case Action::kStop:
      Signal(name, "stop", SIGSTOP);
      break;
    case Action::kKill:
      Signal(name, "kill", SIGKILL);
      break;
  }
  return {};
}

void Pass(std::string_view name, std::span<const int32_t> values) {
  const Status error = Reach(name, values);
  CHECK(error.ok(), Message(error), " can give no error, only kill or stop");
}

}  // namespace failpoint_internal

}  // namespace terrace
