// Template source to syntax tree, by recursive descent. Pure, thread-safe.
#pragma once

#include <string_view>

#include "base/status.h"
#include "text/jinja/ast.h"

namespace terrace {

inline constexpr size_t kMaxTemplateSource = size_t{1} << 20;  // bytes

// DATA_LOSS, reason bad_template, with line and column, for anything outside the subset.
StatusOr<TemplateProgram> ParseTemplate(std::string_view source);

}  // namespace terrace
