#include "router/cluster/discovery.h"

#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "router/cluster/address_file.h"

namespace terrace {
namespace {

constexpr std::string_view kDnsPrefix = "dns:///", kSrvPrefix = "srv:///", kFilePrefix = "file://";
constexpr auto kNameKept = std::chrono::minutes(10);  // that does not exist any more

using Addresses = std::vector<std::string>;

// What a name was found to be, the last time that it was. MakeDiscoveries has the rule.
template <typename Value>
class LastGood {
 public:
  // `kind` and `name` are for the error. Its status is the latest answer's.
  Status Take(StatusOr<std::vector<Value>> found, MonoTime now, std::string_view kind,
              const std::string& name) {
    if (found.ok()) absent_since_.reset();
    if (found.ok() && found->empty()) found = Unavailable(kind, " ", name, ": no address");
    if (found.ok()) values_ = *found;
    if (found.status().code() == StatusCode::kNotFound) {
      if (!absent_since_.has_value()) absent_since_ = now;
      if (now - *absent_since_ >= kNameKept) values_.clear();
    }
    return found.status();
  }
  const std::vector<Value>& values() const { return values_; }

 private:
  std::vector<Value> values_;
  std::optional<MonoTime> absent_since_;  // there is no such name
};

// One entry of the list. What Refresh cannot find is in the errors; `addresses` are the last ones then.
class Source {
 public:
  virtual ~Source() = default;
  virtual std::vector<Status> Refresh(MonoTime now) = 0;
  virtual Addresses addresses() const = 0;
};

class DnsName : public Source {
 public:
  DnsName(HostPort name, DnsLookup look_up) : name_(std::move(name)), look_up_(std::move(look_up)) {}
  std::vector<Status> Refresh(MonoTime now) override {
    const Status error = found_.Take(look_up_(name_), now, "DNS name", name_.host);
    return error.ok() ? std::vector<Status>() : std::vector{error};
  }
  Addresses addresses() const override { return found_.values(); }

 private:
  const HostPort name_;
  const DnsLookup look_up_;
  LastGood<std::string> found_;
};

class SrvName : public Source {
 public:
  SrvName(std::string name, const DiscoveryOptions& options)
      : name_(std::move(name)), look_up_(options.look_up_srv), look_up_target_(options.look_up) {}

  std::vector<Status> Refresh(MonoTime now) override {
    std::vector<Status> errors;
    if (const Status error = found_.Take(look_up_(name_), now, "SRV records of", name_); !error.ok())
      errors.push_back(error);
    std::map<std::string, std::unique_ptr<DnsName>> targets;  // those it has now
    for (const HostPort& target : found_.values()) {
      std::unique_ptr<DnsName>& entry = targets[target.ToString()];
      if (entry != nullptr) continue;  // twice in the answer
      entry = std::exchange(targets_[target.ToString()], nullptr);
      if (entry == nullptr) entry = std::make_unique<DnsName>(target, look_up_target_);
      std::ranges::move(entry->Refresh(now), std::back_inserter(errors));
    }
    // Those that went away stay for as long as one that came has not been found: names may change before the
    // addresses behind them are there.
    const bool is_one_missing =
        std::ranges::any_of(targets, [](const auto& target) { return target.second->addresses().empty(); });
    for (auto& [name, gone] : targets_) {
      if (is_one_missing && gone != nullptr) targets[name] = std::move(gone);
    }
    targets_ = std::move(targets);
    return errors;
  }
  Addresses addresses() const override {
    Addresses out;
    for (const auto& [name, target] : targets_)
      std::ranges::copy(target->addresses(), std::back_inserter(out));
    return out;
  }

 private:
  const std::string name_;
  const SrvLookup look_up_;
  const DnsLookup look_up_target_;
  LastGood<HostPort> found_;
  std::map<std::string, std::unique_ptr<DnsName>> targets_;  // by host:port
};

class FileSource : public Source {
 public:
  explicit FileSource(std::string path) : file_(std::move(path)) {}
  std::vector<Status> Refresh(MonoTime) override {
    const Status error = file_.Refresh();
    return error.ok() ? std::vector<Status>() : std::vector{error};
  }
  Addresses addresses() const override { return file_.addresses(); }

 private:
  AddressFile file_;
};

class ListedDiscovery : public Discovery {
 public:
  explicit ListedDiscovery(const std::set<std::string>& addresses)
      : addresses_(addresses.begin(), addresses.end()) {}

 private:
  Discovered Look() override { return {.addresses = addresses_}; }

  const Addresses addresses_;
};

class SourceDiscovery : public Discovery {
 public:
  SourceDiscovery(std::unique_ptr<Source> source, bool asks_names, const Clock& clock)
      : source_(std::move(source)), asks_names_(asks_names), clock_(clock) {}
  bool asks_names() const override { return asks_names_; }

 private:
  Discovered Look() override {
    std::vector<Status> errors = source_->Refresh(clock_.Now());
    const Addresses found = source_->addresses();
    const std::set<std::string> sorted(found.begin(), found.end());
    return {.addresses = {sorted.begin(), sorted.end()}, .errors = std::move(errors)};
  }

  const std::unique_ptr<Source> source_;
  const bool asks_names_;
  const Clock& clock_;
};

StatusOr<std::string> ParseSrvName(std::string_view name) {
  const auto is_allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  if (!name.empty() && name.size() < NI_MAXHOST && std::ranges::all_of(name, is_allowed))
    return std::string(name);
  return InvalidArgument("\"", kSrvPrefix, name, "\": expected srv:///_service._proto.name");
}

StatusOr<std::string> ParsePath(std::string_view path) {
  if (path.size() > 1 && path.front() == '/') return std::string(path);
  return InvalidArgument("\"", kFilePrefix, path, "\": expected file:///path, which is absolute");
}

// Null for an address.
StatusOr<std::unique_ptr<Source>> MakeSource(std::string_view worker, const DiscoveryOptions& options) {
  if (worker.starts_with(kDnsPrefix)) {
    ASSIGN_OR_RETURN(HostPort name, ParseWorkerAddress(worker.substr(kDnsPrefix.size())));
    return std::make_unique<DnsName>(std::move(name), options.look_up);
  }
  if (worker.starts_with(kSrvPrefix)) {
    ASSIGN_OR_RETURN(std::string name, ParseSrvName(worker.substr(kSrvPrefix.size())));
    return std::make_unique<SrvName>(std::move(name), options);
  }
  if (worker.starts_with(kFilePrefix)) {
    ASSIGN_OR_RETURN(std::string path, ParsePath(worker.substr(kFilePrefix.size())));
    return std::make_unique<FileSource>(std::move(path));
  }
  return nullptr;
}

}  // namespace

StatusOr<std::vector<std::string>> SystemDnsLookup(const HostPort& name) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(name.host.c_str(), std::to_string(name.port).c_str(), &hints, &found);
  if (error == EAI_NONAME) return NotFound("DNS name ", name.host, ": ", gai_strerror(error));
  if (error == EAI_NODATA) return Addresses();
  if (error != 0) return Unavailable("DNS name ", name.host, ": ", gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  Addresses out;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    char host[NI_MAXHOST];
    if (getnameinfo(entry->ai_addr, entry->ai_addrlen, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) == 0) {
      out.push_back(HostPort{host, name.port}.ToString());
    }
  }
  return out;
}

Discovered Discovery::Resolve() {
  std::unique_lock lock(mutex_);
  if (is_looking_) {
    ended_.wait(lock, [this, look = looks_] { return looks_ != look; });
    return *latest_;
  }
  is_looking_ = true;
  lock.unlock();
  Discovered found = Look();
  lock.lock();
  is_looking_ = false;
  ++looks_;
  latest_ = found;
  ended_.notify_all();
  return found;
}

std::optional<Discovered> Discovery::latest() const {
  std::lock_guard lock(mutex_);
  return latest_;
}

StatusOr<Discoveries> MakeDiscoveries(const std::vector<std::string>& workers,
                                      const DiscoveryOptions& options, const Discoveries& known) {
  std::set<std::string> addresses;
  Discoveries out;
  for (const std::string& worker : workers) {
    ASSIGN_OR_RETURN(std::unique_ptr<Source> source, MakeSource(worker, options));
    if (source == nullptr) {
      ASSIGN_OR_RETURN(const HostPort address, ParseWorkerAddress(worker));
      addresses.insert(address.ToString());
    } else if (const auto found = known.find(worker); found != known.end()) {
      out.insert(*found);
    } else {
      out[worker] = std::make_shared<SourceDiscovery>(std::move(source), !worker.starts_with(kFilePrefix),
                                                      options.clock);
    }
  }
  if (out.size() > kMostNames)
    return InvalidArgument(out.size(), " names and files, limit ", kMostNames, ": use one SRV name for many");
  if (!addresses.empty()) out[""] = std::make_shared<ListedDiscovery>(addresses);
  return out;
}

}  // namespace terrace
