#include "tools/cli/key.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/crypto.h"

namespace terrace {
namespace {

constexpr char kPrefix[] = "terrace-";  // so that secret scanners know one when they see it
constexpr size_t kSecretBytes = 32;

Status WriteKey(const std::string& file, const std::string& key) {
  const std::string line = key + "\n";
  const int fd = open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return Unavailable(file, ": ", std::strerror(errno));
  const bool is_written = write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  if (close(fd) == 0 && is_written) return {};
  return Unavailable(file, ": cannot be written");
}

}  // namespace

Status RunKey(const KeyOptions& options, const CommandContext& context) {
  std::string key = kPrefix + ToHex(SecretBytes(kSecretBytes));
  if (!options.file.empty()) {
    ASSIGN_OR_RETURN(key, ReadApiKey(options.file));
  }
  if (!options.out.empty()) {
    RETURN_IF_ERROR(WriteKey(options.out, key));
  } else if (options.file.empty()) {
    context.out << "key         " << key << "\n";
  }
  context.out << "key_sha256  " << ToHex(AsBytes(Sha256(key))) << "\n";
  return {};
}

StatusOr<std::string> ReadApiKey(const std::string& file) {
  std::ifstream stream(file);
  std::string key;
  if (!stream.is_open()) return NotFound(file, ": cannot be read");
  std::getline(stream, key);
  while (!key.empty() && (key.back() == '\r' || key.back() == ' ')) key.pop_back();
  if (key.empty()) return InvalidArgument(file, ": its first line must be an API key");
  for (const char c : key) {
    if (c <= ' ' || c > '~') return InvalidArgument(file, ": an API key is printable ASCII without blanks");
  }
  return key;
}

}  // namespace terrace
