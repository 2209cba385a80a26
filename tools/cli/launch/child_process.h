// Child processes of one command: starts them, reads their output line by line, reports how they end, and
// leaves none behind. Each child has a process group of its own, so a Ctrl-C at the terminal reaches only the
// parent, which decides the order of stopping; the kernel kills a child whose parent died (PR_SET_PDEATHSIG).
// One thread uses it, the one that must live as long as the children do.
#pragma once

#include <sys/types.h>

#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace terrace {

struct ChildSpec {
  std::string name;               // unique among the running ones
  std::vector<std::string> argv;  // argv[0] is the path of the binary
};

struct ChildExit {
  std::string name;
  int exit_code = 0;  // when signal is 0
  int signal = 0;
  std::vector<std::string> last_lines;  // at most kLastLines

  std::string Describe()
      const;  // "worker-nano ended with exit code 65" or "... was killed by signal 9 (Killed)"
};

class ChildProcesses {
 public:
  static constexpr size_t kLastLines = 8;
  static constexpr size_t kMaxLineBytes = 64 << 10;  // a longer line is cut into several

  // `on_line` gets every line the children write to stdout or stderr, without its end.
  using OnLine = std::function<void(const std::string& name, const std::string& line)>;
  explicit ChildProcesses(OnLine on_line) : on_line_(std::move(on_line)) {}
  ~ChildProcesses();  // kills and reaps what still runs
  ChildProcesses(const ChildProcesses&) = delete;
  ChildProcesses& operator=(const ChildProcesses&) = delete;

  // NOT_FOUND when the binary cannot be executed.
  Status Start(const ChildSpec& spec);
  // Reads output and reaps for up to `seconds`, less when a child writes or ends: those that ended.
  std::vector<ChildExit> Poll(double seconds);
  // SIGTERM to `names`, then waits until they are gone. SIGKILL after `grace_seconds`, or as soon as
  // `is_urgent` says so.
  std::vector<ChildExit> Stop(const std::vector<std::string>& names, double grace_seconds,
                              const std::function<bool()>& is_urgent);

  bool IsRunning(const std::string& name) const;
  std::vector<std::string> running() const;

 private:
  struct Child {
    std::string name;
    pid_t pid = -1;
    int output = -1;  // read end of its stdout and stderr; -1 once closed
    std::string partial_line;
    std::deque<std::string> last_lines;
  };

  bool AwaitOutput(double seconds) const;
  std::vector<ChildExit> ReadAndReap();
  void Read(Child& child);
  void TakeLine(Child& child, std::string line);
  void CloseOutput(Child& child);
  void SendSignal(const std::string& name, int signal);

  const OnLine on_line_;
  std::vector<Child> children_;  // the running ones
};

}  // namespace terrace
