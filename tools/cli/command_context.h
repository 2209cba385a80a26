// What every command of the CLI is given: where it writes, what it may draw there, and the signal it obeys.
// Made once in main; used by main's thread.
#pragma once

#include <ostream>
#include <string>

#include "base/shutdown.h"

namespace terrace {

struct CommandContext {
  std::string argv0;  // how this process was called
  std::ostream& out;
  std::ostream& err;
  bool is_out_terminal = false;  // then tables refresh and prompts are shown
  bool is_err_terminal = false;  // then progress is shown
  bool use_color = false;        // only on a terminal, never with NO_COLOR
  ShutdownSignal& shutdown;

  std::string Bold(const std::string& text) const { return Paint("1", text); }
  std::string Dim(const std::string& text) const { return Paint("2", text); }
  std::string Green(const std::string& text) const { return Paint("32", text); }
  std::string Red(const std::string& text) const { return Paint("31", text); }

 private:
  std::string Paint(const char* code, const std::string& text) const {
    return use_color ? std::string("\x1b[") + code + "m" + text + "\x1b[0m" : text;
  }
};

}  // namespace terrace
