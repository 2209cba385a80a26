#include "text/jinja/builtins.h"

#include <algorithm>

namespace terrace {

StatusOr<Value> TemplateBuiltin::Call(const Value& subject, const ValueList& positional,
                                      const std::vector<std::pair<std::string, Value>>& named,
                                      Budget& budget) const {
  if (positional.size() > parameters.size()) {
    return TemplateError(name, " takes at most ", parameters.size(), " arguments");
  }
  ValueList arguments = positional;
  arguments.resize(parameters.size());
  std::vector<bool> is_given(parameters.size());
  std::fill_n(is_given.begin(), positional.size(), true);
  for (const auto& [key, value] : named) {
    const size_t i = std::ranges::find(parameters, key) - parameters.begin();
    if (i == parameters.size() || is_given[i])
      return TemplateError(name, " takes no argument '", key, "' here");
    arguments[i] = value;
    is_given[i] = true;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!is_given[i]) return TemplateError(name, " needs the argument '", parameters[i], "'");
  }
  return function(subject, arguments, budget);
}

}  // namespace terrace
