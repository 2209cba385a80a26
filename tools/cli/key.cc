#include "tools/cli/key.h"

#include <fstream>

#include "base/crypto.h"
#include "tools/cli/new_file.h"

namespace terrace {
namespace {

constexpr char kPrefix[] = "terrace-";  // so that secret scanners know one when they see it
constexpr size_t kSecretBytes = 32;

}  // namespace

Status RunKey(const KeyOptions& options, const CommandContext& context) {
  std::string key = kPrefix + ToHex(SecretBytes(kSecretBytes));
  if (!options.file.empty()) {
    ASSIGN_OR_RETURN(key, ReadApiKey(options.file));
  }
  if (!options.out.empty()) {
    RETURN_IF_ERROR(WriteNewFile(options.out, key + "\n", /*is_secret=*/true));
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
