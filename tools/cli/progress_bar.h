// One line on stderr that shows how far long work is; nothing when stderr is no terminal. Used by one thread.
#pragma once

#include <cstddef>
#include <string>

#include "base/clock.h"
#include "tools/cli/command_context.h"

namespace terrace {

class ProgressBar {
 public:
  // `context` outlives this object.
  ProgressBar(const CommandContext& context, std::string label)
      : context_(context), label_(std::move(label)) {}
  ~ProgressBar();  // clears the line

  void Show(size_t done, size_t total);
  // `share` of the work is done, 0 to 1; `text` says it in its own words.
  void ShowShare(double share, const std::string& text);

 private:
  const CommandContext& context_;
  const std::string label_;
  const MonoTime start_ = RealClock().Now();
  MonoTime last_shown_;
  bool is_shown_ = false;
};

}  // namespace terrace
