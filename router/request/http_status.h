// HTTP's code for an error of ours: of replies, and of the access log. Pure.
#pragma once

#include "base/status.h"

namespace terrace {

// 400, 401, 403, 404, 429, 499, 500, 501, 503 or 504.
int HttpStatusOf(const Status& error);

}  // namespace terrace
