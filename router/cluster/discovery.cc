#include "router/cluster/discovery.h"

#include <netdb.h>
#include <sys/socket.h>

#include <set>
#include <string_view>
#include <utility>

#include "base/host_port.h"

namespace terrace {
namespace {

constexpr std::string_view kDnsPrefix = "dns:///";

// As people write it, with a port that can be connected to.
StatusOr<HostPort> ParseWorker(std::string_view text) {
  ASSIGN_OR_RETURN(HostPort out, ParseHostPort(text));
  if (out.port == 0) return InvalidArgument("\"", text, "\": a worker's port is not 0");
  return out;
}

class ListedDiscovery : public Discovery {
 public:
  struct Name {
    HostPort name = {};
    std::vector<std::string> last = {};  // the latest addresses it had
  };

  ListedDiscovery(std::set<std::string> addresses, std::vector<Name> names, DnsLookup look_up)
      : addresses_(std::move(addresses)), names_(std::move(names)), look_up_(std::move(look_up)) {}

  Discovered Resolve() override {
    std::set<std::string> all = addresses_;
    std::vector<Status> errors;
    for (Name& name : names_) {
      auto found = look_up_(name.name);
      if (found.ok() && found->empty()) found = Unavailable("DNS name ", name.name.host, ": no address");
      if (found.ok()) {
        name.last = *std::move(found);
      } else {
        errors.push_back(found.status());
      }
      all.insert(name.last.begin(), name.last.end());
    }
    return {.addresses = {all.begin(), all.end()}, .errors = std::move(errors)};
  }

 private:
  const std::set<std::string> addresses_;
  std::vector<Name> names_;
  const DnsLookup look_up_;
};

}  // namespace

StatusOr<std::vector<std::string>> SystemDnsLookup(const HostPort& name) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(name.host.c_str(), std::to_string(name.port).c_str(), &hints, &found);
      error != 0) {
    return Unavailable("DNS name ", name.host, ": ", gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  std::vector<std::string> out;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    char host[NI_MAXHOST];
    if (getnameinfo(entry->ai_addr, entry->ai_addrlen, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) == 0) {
      out.push_back(HostPort{host, name.port}.ToString());
    }
  }
  return out;
}

StatusOr<std::unique_ptr<Discovery>> MakeDiscovery(const std::vector<std::string>& workers,
                                                   DnsLookup look_up) {
  std::set<std::string> addresses;
  std::vector<ListedDiscovery::Name> names;
  for (const std::string& worker : workers) {
    const bool is_name = worker.starts_with(kDnsPrefix);
    ASSIGN_OR_RETURN(HostPort parts,
                     ParseWorker(is_name ? std::string_view(worker).substr(kDnsPrefix.size()) : worker));
    if (is_name) {
      names.push_back({.name = std::move(parts)});
    } else {
      addresses.insert(parts.ToString());
    }
  }
  return std::make_unique<ListedDiscovery>(std::move(addresses), std::move(names), std::move(look_up));
}

}  // namespace terrace
