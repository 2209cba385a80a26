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

StatusOr<std::vector<std::string>> LookUp(const HostPort& name) {
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

class ListedDiscovery : public Discovery {
 public:
  ListedDiscovery(std::set<std::string> addresses, std::vector<HostPort> names)
      : addresses_(std::move(addresses)), names_(std::move(names)) {}

  StatusOr<std::vector<std::string>> Resolve() override {
    std::set<std::string> all = addresses_;
    for (const HostPort& name : names_) {
      ASSIGN_OR_RETURN(const std::vector<std::string> found, LookUp(name));
      all.insert(found.begin(), found.end());
    }
    return std::vector<std::string>(all.begin(), all.end());
  }

 private:
  const std::set<std::string> addresses_;
  const std::vector<HostPort> names_;
};

}  // namespace

StatusOr<std::unique_ptr<Discovery>> MakeDiscovery(const std::vector<std::string>& workers) {
  std::set<std::string> addresses;
  std::vector<HostPort> names;
  for (const std::string& worker : workers) {
    const bool is_name = worker.starts_with(kDnsPrefix);
    ASSIGN_OR_RETURN(HostPort parts,
                     ParseWorker(is_name ? std::string_view(worker).substr(kDnsPrefix.size()) : worker));
    if (is_name) {
      names.push_back(std::move(parts));
    } else {
      addresses.insert(parts.ToString());
    }
  }
  return std::make_unique<ListedDiscovery>(std::move(addresses), std::move(names));
}

}  // namespace terrace
