// Errors. The world (input, file, peer, full queue) is an absl::Status whose message names the cause, the
// value and the limit; a bug of ours is a CHECK, which prints and aborts. Thread-safe: values only.
//
// A Status may carry a *reason*: a short stable string such as "bad_magic" or "context_length_exceeded" that
// programs may match on. It is the `code` of an HTTP error body and the trailer "terrace-reason" of a gRPC
// call.
#pragma once

#include <concepts>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace terrace {

using absl::Status;
using absl::StatusCode;
template <typename T>
using StatusOr = absl::StatusOr<T>;

namespace status_internal {
inline void Append(std::string& out, std::string_view value) { out.append(value); }
inline void Append(std::string& out, const char* value) { out.append(value); }
inline void Append(std::string& out, char value) { out.push_back(value); }
inline void Append(std::string& out, bool value) { out.append(value ? "true" : "false"); }
void Append(std::string& out, double value);
template <std::integral T>
void Append(std::string& out, T value) {
  out.append(std::to_string(value));
}
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, std::string_view message);
Status MakeStatus(StatusCode code, std::string_view message);
}  // namespace status_internal

// Joins strings, string_views, characters and numbers. (Debian's absl::StrCat refuses std::string_view.)
template <typename... Args>
std::string Concat(const Args&... args) {
  std::string out;
  (status_internal::Append(out, args), ...);
  return out;
}

template <typename... Args>
Status InvalidArgument(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kInvalidArgument, Concat(args...));
}
template <typename... Args>
Status NotFound(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kNotFound, Concat(args...));
}
template <typename... Args>
Status FailedPrecondition(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kFailedPrecondition, Concat(args...));
}
template <typename... Args>
Status ResourceExhausted(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kResourceExhausted, Concat(args...));
}
template <typename... Args>
Status Unavailable(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kUnavailable, Concat(args...));
}
template <typename... Args>
Status DeadlineExceeded(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kDeadlineExceeded, Concat(args...));
}
template <typename... Args>
Status Cancelled(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kCancelled, Concat(args...));
}
template <typename... Args>
Status Aborted(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kAborted, Concat(args...));
}
template <typename... Args>
Status Unimplemented(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kUnimplemented, Concat(args...));
}
template <typename... Args>
Status Internal(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kInternal, Concat(args...));
}
// A file or message whose bytes are wrong, as opposed to a wrong request: processes exit with 65.
template <typename... Args>
Status DataLoss(const Args&... args) {
  return status_internal::MakeStatus(StatusCode::kDataLoss, Concat(args...));
}

// `status` with its reason set; OK stays OK.
Status WithReason(Status status, std::string_view reason);
// The reason, or "" when none was set.
std::string Reason(const Status& status);
// `status` with "`prefix`: " in front of the message; code and reason are kept; OK stays OK.
Status Annotate(const Status& status, std::string_view prefix);
// The message as a std::string (absl::Status::message() is not a std::string_view here).
inline std::string Message(const Status& status) {
  return std::string(status.message().data(), status.message().size());
}

}  // namespace terrace

#define TERRACE_CONCAT_INNER(a, b) a##b
#define TERRACE_CONCAT(a, b) TERRACE_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                                           \
  do {                                                                        \
    if (::absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

#define ASSIGN_OR_RETURN(declaration, expression) \
  ASSIGN_OR_RETURN_IMPL(TERRACE_CONCAT(status_or_, __LINE__), declaration, expression)
#define ASSIGN_OR_RETURN_IMPL(temporary, declaration, expression) \
  auto temporary = (expression);                                  \
  if (!temporary.ok()) return std::move(temporary).status();      \
  declaration = std::move(temporary).value()

// CHECK(condition) or CHECK(condition, "text ", value): a broken invariant of ours; prints and aborts.
#define CHECK(condition, ...)                                                  \
  do {                                                                         \
    if (!(condition)) [[unlikely]]                                             \
      ::terrace::status_internal::CheckFailed(__FILE__, __LINE__, #condition,  \
                                              ::terrace::Concat(__VA_ARGS__)); \
  } while (false)
