// Named places in the code at which a test can make things go wrong. Only builds with --config=failpoints,
// which define TERRACE_FAILPOINTS, have them: in all others the macros are constants, and no name of a place
// is left.
//
//   TERRACE_FAILPOINT("worker.after_step");
//   TERRACE_FAILPOINT("worker.computes_token", tokens);  // a fault may be of one of these values
//   RETURN_IF_ERROR(TERRACE_FAILPOINT_STATUS("worker.execute"));
//
// An environment variable arms them; it is read at the process's start, which a wrong one ends (78), as one
// that names no place there is (kFailpointPlaces):
//
//   TERRACE_FAILPOINTS='worker.after_step=kill@64;worker.computes_token:1021=kill'
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace terrace {

struct FailpointPlace {
  std::string_view name = {};
  bool has_values = false, takes_error = false;
};
// All that are in the code.
inline constexpr FailpointPlace kFailpointPlaces[] = {
    {.name = "worker.after_step"},
    {.name = "worker.computes_token", .has_values = true},
    {.name = "worker.execute", .takes_error = true},
};

// The faults that are armed, and how often each was reached. One thread at a time.
class Failpoints {
 public:
  enum class Action : uint8_t { kNone, kError, kStop, kKill };

  // Faults separated by ";", each NAME[:VALUE]=ACTION[@N]: at the N-th time only, else at every time, that
  // the place NAME is reached (with VALUE among its values). ACTION is kill (SIGKILL), stop (SIGSTOP) or
  // error.
  static StatusOr<Failpoints> Parse(std::string_view text);
  // INVALID_ARGUMENT for a fault that cannot happen: of no place of these, of a value where there are none,
  // or an error where none can be given.
  Status Check(std::span<const FailpointPlace> places) const;

  // Counts, and tells the worst of what is to happen.
  Action Reach(std::string_view name, std::span<const int32_t> values = {});

 private:
  struct Fault {
    std::string name = {};
    std::optional<int32_t> value = {};
    Action action = Action::kNone;
    uint64_t at = 0;  // 0: every time
    uint64_t reached = 0;
  };
  static StatusOr<Fault> ParseFault(std::string_view text);

  std::vector<Fault> faults_;
};

namespace failpoint_internal {
// Ends the process (78) when the environment has faults that cannot be armed or cannot happen. At its start.
void Arm();
// Both thread-safe. A process that was stopped goes on from there when it is continued. An error is INTERNAL
// (failpoint); where none can be given, one that is armed is a CHECK.
Status Reach(std::string_view name, std::span<const int32_t> values = {});
void Pass(std::string_view name, std::span<const int32_t> values = {});
}  // namespace failpoint_internal

}  // namespace terrace

// TERRACE_ARM_FAILPOINTS(): once, in main.
#ifdef TERRACE_FAILPOINTS
#define TERRACE_ARM_FAILPOINTS() ::terrace::failpoint_internal::Arm()
#define TERRACE_FAILPOINT(...) ::terrace::failpoint_internal::Pass(__VA_ARGS__)
#define TERRACE_FAILPOINT_STATUS(...) ::terrace::failpoint_internal::Reach(__VA_ARGS__)
#else
#define TERRACE_ARM_FAILPOINTS() static_cast<void>(0)
#define TERRACE_FAILPOINT(...) static_cast<void>(0)
#define TERRACE_FAILPOINT_STATUS(...) ::absl::OkStatus()
#endif
