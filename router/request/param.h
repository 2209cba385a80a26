// Names the request field at fault: a second label on a Status beside its reason. It becomes `param` in an
// HTTP error body. Thread-safe: values only.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace terrace {

// `status` with its parameter set; OK stays OK.
Status WithParam(Status status, std::string_view param);
// NOT_FOUND (model_not_found). `name` is the client's: the message has it only when it is plain and short.
Status ModelNotFound(std::string_view name);
// PERMISSION_DENIED (model_not_allowed); `name` is the configuration's.
Status ModelNotAllowed(std::string_view name);
// The parameter ("messages[3].content"), or "".
std::string Param(const Status& status);

// INVALID_ARGUMENT "`param`: text" with reason and parameter.
template <typename... Args>
Status ParamError(std::string_view reason, std::string_view param, const Args&... text) {
  return WithParam(WithReason(InvalidArgument(param, ": ", text...), reason), param);
}

}  // namespace terrace
