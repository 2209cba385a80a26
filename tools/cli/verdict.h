// When the work was done and the answer is no: the process ends with kExitFailure (base/exit_code.h), not as
// after an error.
#pragma once

#include <string_view>

#include "base/status.h"

namespace terrace {

inline constexpr std::string_view kAnswerIsNoReason = "answer_is_no";

template <typename... Text>
Status AnswerIsNo(const Text&... text) {
  return WithReason(FailedPrecondition(text...), kAnswerIsNoReason);
}

}  // namespace terrace
