// Runs a parsed template. Pure; any thread may render one program at the same time as
// others.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "text/jinja/ast.h"

namespace terrace {

// The output of `program` with these variables defined. INVALID_ARGUMENT, reason template_error, with line
// and column, when a value is misused, a limit of value.h is passed or the template calls raise_exception.
StatusOr<MarkedString> RenderTemplate(const TemplateProgram& program,
                                      const std::vector<std::pair<std::string, Value>>& variables);

}  // namespace terrace
