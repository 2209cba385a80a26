// Template source to syntax tree, by recursive descent. Pure, thread-safe. The subset of Jinja:
//   - tags: if, elif, else; for (unpacking, if, else; loop.index and its kin); set, also of an attribute of a
//     namespace(...); generation, which does nothing
//   - operators: or and not, chained comparisons, in, is, + - ~ * / // %, x if c else y, x.y, x[y]
//   - filters: trim length count upper lower capitalize replace default d first last join list items string
//     safe tojson select reject selectattr rejectattr
//   - tests: defined undefined none string mapping sequence iterable number integer float boolean true false
//     odd even in eq equalto ne
//   - methods: of text strip lstrip rstrip startswith endswith upper lower capitalize title split replace; of
//     dictionaries items keys values get
//   - functions: namespace, range, raise_exception; any other name fails when it is called, not before
// Unlike in Python, lists and dictionaries cannot be printed, ordered or repeated, and letters outside ASCII
// have no case. Macros, includes, imports, raw blocks and filter blocks are refused.
#pragma once

#include <string_view>

#include "base/status.h"
#include "text/jinja/ast.h"

namespace terrace {

inline constexpr size_t kMaxTemplateSource = size_t{1} << 20;  // bytes

// DATA_LOSS, reason bad_template, with line and column, for anything outside the subset.
StatusOr<TemplateProgram> ParseTemplate(std::string_view source);

}  // namespace terrace
