#include "tools/cli/launch/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/clock.h"

namespace terrace {
namespace {

constexpr double kStopPollSeconds = 0.05;
constexpr double kReapSeconds = 0.02;  // how late an end is noticed: waitpid has no place in poll

// What the child does between fork and exec: only async-signal-safe calls.
[[noreturn]] void BecomeChild(char* const* argv, int input, int output, int error_report, pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // it died before the line above
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);  // the parent blocks some (base/shutdown.h)
  signal(SIGPIPE, SIG_DFL);
  dup2(input, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  execv(argv[0], argv);
  const int error = errno;
  [[maybe_unused]] const ssize_t written = write(error_report, &error, sizeof(error));
  _exit(127);
}

}  // namespace

std::string ChildExit::Describe() const {
  if (signal != 0) return Concat(name, " was killed by signal ", signal, " (", strsignal(signal), ")");
  return Concat(name, " ended with exit code ", exit_code);
}

ChildProcesses::~ChildProcesses() {
  Stop(running(), /*grace_seconds=*/0, [] { return true; });
}

Status ChildProcesses::Start(const ChildSpec& spec) {
  CHECK(!spec.argv.empty() && !IsRunning(spec.name), spec.name);
  std::vector<char*> argv;
  for (const std::string& arg : spec.argv) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);

  int output[2], error_report[2];
  if (pipe2(output, O_CLOEXEC) != 0) return Internal("pipe: ", std::strerror(errno));
  if (pipe2(error_report, O_CLOEXEC) != 0) {
    close(output[0]);
    close(output[1]);
    return Internal("pipe: ", std::strerror(errno));
  }
  const int input = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  const int fork_error = errno;
  if (pid == 0) BecomeChild(argv.data(), input, output[1], error_report[1], parent);
  if (pid > 0) setpgid(pid, pid);  // here too: a signal to the group must not come before it exists
  close(input);
  close(output[1]);
  close(error_report[1]);

  int error = pid > 0 ? 0 : fork_error;
  if (pid > 0) {  // ends with the exec (close-on-exec) or with its errno
    while (read(error_report[0], &error, sizeof(error)) < 0 && errno == EINTR) {
    }
  }
  close(error_report[0]);
  if (error != 0) {
    if (pid > 0) waitpid(pid, nullptr, 0);
    close(output[0]);
    return NotFound("cannot start ", spec.argv[0], ": ", std::strerror(error));
  }
  fcntl(output[0], F_SETFL, O_NONBLOCK);
  children_.push_back(
      {.name = spec.name, .pid = pid, .output = output[0], .partial_line = {}, .last_lines = {}});
  return Status();
}

std::vector<ChildExit> ChildProcesses::Poll(double seconds) {
  const MonoTime start = RealClock().Now();
  while (true) {
    const double left = seconds - Seconds(RealClock().Now() - start);
    const bool has_output = AwaitOutput(std::min(left, kReapSeconds));
    std::vector<ChildExit> exits = ReadAndReap();
    if (has_output || !exits.empty() || left <= 0) return exits;
  }
}

bool ChildProcesses::AwaitOutput(double seconds) const {
  std::vector<pollfd> fds;
  for (const Child& child : children_) {
    if (child.output >= 0) fds.push_back({.fd = child.output, .events = POLLIN, .revents = 0});
  }
  return poll(fds.data(), fds.size(), static_cast<int>(std::max(seconds, 0.0) * 1000)) > 0;
}

std::vector<ChildExit> ChildProcesses::ReadAndReap() {
  std::vector<ChildExit> exits;
  for (Child& child : children_) {
    int wait_status = 0;
    const bool has_ended = waitpid(child.pid, &wait_status, WNOHANG) == child.pid;
    if (child.output >= 0) Read(child);  // after waitpid: all that it wrote is there
    if (!has_ended) continue;
    kill(-child.pid, SIGKILL);  // whatever it may have left in its group
    if (!child.partial_line.empty()) TakeLine(child, std::exchange(child.partial_line, {}));
    CloseOutput(child);
    exits.push_back({.name = child.name,
                     .exit_code = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 0,
                     .signal = WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : 0,
                     .last_lines = {child.last_lines.begin(), child.last_lines.end()}});
    child.pid = -1;
  }
  std::erase_if(children_, [](const Child& child) { return child.pid < 0; });
  return exits;
}

std::vector<ChildExit> ChildProcesses::Stop(const std::vector<std::string>& names, double grace_seconds,
                                            const std::function<bool()>& is_urgent) {
  for (const std::string& name : names) SendSignal(name, SIGTERM);
  const MonoTime start = RealClock().Now();
  const auto is_any_running = [&] {
    return std::any_of(names.begin(), names.end(), [&](const std::string& name) { return IsRunning(name); });
  };
  std::vector<ChildExit> exits;
  while (is_any_running()) {
    if (Seconds(RealClock().Now() - start) >= grace_seconds || is_urgent()) {
      for (const std::string& name : names) SendSignal(name, SIGKILL);
    }
    for (ChildExit& exit : Poll(kStopPollSeconds)) exits.push_back(std::move(exit));
  }
  return exits;
}

bool ChildProcesses::IsRunning(const std::string& name) const {
  return std::any_of(children_.begin(), children_.end(),
                     [&](const Child& child) { return child.name == name; });
}

std::vector<std::string> ChildProcesses::running() const {
  std::vector<std::string> names;
  for (const Child& child : children_) names.push_back(child.name);
  return names;
}

void ChildProcesses::Read(Child& child) {
  std::array<char, 16 << 10> buffer;
  while (true) {
    const ssize_t count = read(child.output, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) return CloseOutput(child);
    for (ssize_t i = 0; i < count; ++i) {
      const bool is_end = buffer[i] == '\n';
      if (!is_end) child.partial_line += buffer[i];
      if (is_end || child.partial_line.size() >= kMaxLineBytes)
        TakeLine(child, std::exchange(child.partial_line, {}));
    }
  }
}

void ChildProcesses::TakeLine(Child& child, std::string line) {
  on_line_(child.name, line);
  child.last_lines.push_back(std::move(line));
  if (child.last_lines.size() > kLastLines) child.last_lines.pop_front();
}

void ChildProcesses::CloseOutput(Child& child) {
  if (child.output >= 0) close(child.output);
  child.output = -1;
}

void ChildProcesses::SendSignal(const std::string& name, int signal) {
  for (const Child& child : children_) {
    if (child.name == name) kill(-child.pid, signal);
  }
}

}  // namespace terrace
