#include "launch/sweep/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <thread>
#include <utility>

namespace scone {
namespace {

/// NAME=VALUE of this process as it was started, `added` in place of its own.
std::vector<std::string> environment_with(const std::vector<std::string>& added) {
  std::vector<std::string> environment = added;
  std::ifstream file("/proc/self/environ", std::ios::binary);
  for (std::string entry; std::getline(file, entry, '\0');) {
    const std::string name = entry.substr(0, entry.find('=') + 1);
    bool replaced = false;
    for (const std::string& other : added) replaced |= other.starts_with(name);
    if (!replaced) environment.push_back(entry);
  }
  return environment;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> list;
  for (std::string& text : texts) list.push_back(text.data());
  list.push_back(nullptr);
  return list;
}

int open_output(const std::filesystem::path& path) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (file < 0)
    throw std::runtime_error(
        fmt::format("{} cannot be written: {}", path.string(), std::strerror(errno)));
  return file;
}

/// The children of a process, as /proc knows them.
std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  std::error_code error;
  for (const auto& task :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/task", parent), error)) {
    std::ifstream file(task.path() / "children");
    for (pid_t child = 0; file >> child;) children.push_back(child);
  }
  return children;
}

void kill_tree(pid_t root) {
  ::kill(root, SIGSTOP);  // starts nothing more while its children are listed
  for (const pid_t child : children_of(root)) kill_tree(child);
  ::kill(root, SIGKILL);
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& command,
                           const std::vector<std::string>& environment, const ChildOutput& output) {
  std::vector<std::string> arguments = command, variables = environment_with(environment);
  const auto argument_pointers = pointers(arguments), variable_pointers = pointers(variables);
  const int out = open_output(output.out), error = open_output(output.error);
  const int in = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ == 0) {  // calls nothing but system calls: other threads of the parent may hold locks
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGUSR1);
    if (::getppid() != parent) ::_exit(127);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGXFSZ}) ::signal(signal, SIG_DFL);
    ::dup2(in, STDIN_FILENO);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(error, STDERR_FILENO);
    ::execvpe(argument_pointers[0], argument_pointers.data(), variable_pointers.data());
    ::_exit(127);
  }
  for (const int file : {out, error, in}) ::close(file);
  if (pid_ < 0)
    throw std::runtime_error(
        fmt::format("{} cannot be started: {}", command[0], std::strerror(errno)));
  ::setpgid(pid_, pid_);  // whichever of the two is first
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), code_(other.code_) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(code_, other.code_);
  return *this;
}

ChildProcess::~ChildProcess() {
  if (pid_ < 0 || code_) return;
  kill();
  wait();
}

std::optional<int> ChildProcess::poll() {
  if (code_) return code_;
  int status = 0;
  const pid_t ended = ::waitpid(pid_, &status, WNOHANG);
  if (ended == pid_) code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (ended < 0 && errno != EINTR) code_ = 127;
  return code_;
}

int ChildProcess::wait() {
  while (!poll()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return *code_;
}

void ChildProcess::send(int signal) const {
  if (!code_) ::kill(pid_, signal);
}

void ChildProcess::kill() {
  if (!code_) kill_tree(pid_);
}

}  // namespace scone
