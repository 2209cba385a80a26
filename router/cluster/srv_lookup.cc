#include "router/cluster/srv_lookup.h"

#include <arpa/nameser.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>

#include <algorithm>

namespace terrace {
namespace {

constexpr int kSecondsPerTry = 2, kTries = 2;  // of each server
constexpr size_t kPortAt = 4, kTargetAt = 6;   // in a record's data, behind priority and weight

Status Malformed(const char* what) { return DataLoss("DNS answer: ", what, " is malformed"); }

}  // namespace

StatusOr<std::vector<HostPort>> ParseSrvAnswer(std::span<const unsigned char> message) {
  ns_msg answer;
  if (message.size() > NS_MAXMSG ||
      ns_initparse(message.data(), static_cast<int>(message.size()), &answer) != 0) {
    return Malformed("the message");
  }
  std::vector<HostPort> out;
  for (int i = 0; i < ns_msg_count(answer, ns_s_an); ++i) {
    ns_rr record;
    if (ns_parserr(&answer, ns_s_an, i, &record) != 0) return Malformed("a record");
    if (ns_rr_type(record) != ns_t_srv) continue;  // a CNAME on the way
    if (ns_rr_rdlen(record) <= kTargetAt) return Malformed("an SRV record");
    const unsigned char* data = ns_rr_rdata(record);
    char target[NS_MAXDNAME];
    if (dn_expand(ns_msg_base(answer), ns_msg_end(answer), data + kTargetAt, target, sizeof(target)) < 0)
      return Malformed("the target of an SRV record");
    const auto port = static_cast<uint16_t>(ns_get16(data + kPortAt));
    const std::string host = target;
    if (host.empty() || host == "." || port == 0) continue;  // "decidedly not available", says the RFC
    out.push_back({host, port});
  }
  return out;
}

StatusOr<std::vector<HostPort>> SystemSrvLookup(const std::string& name) { return SrvLookupAt({}, name); }

StatusOr<std::vector<HostPort>> SrvLookupAt(std::span<const sockaddr_in> servers, const std::string& name) {
  struct __res_state resolver {};
  if (res_ninit(&resolver) != 0) return Unavailable("SRV records of ", name, ": there is no resolver");
  resolver.retrans = kSecondsPerTry;
  resolver.retry = kTries;
  if (!servers.empty()) {
    resolver.nscount = static_cast<int>(std::min<size_t>(servers.size(), MAXNS));
    std::copy_n(servers.begin(), resolver.nscount, resolver.nsaddr_list);
  }
  std::vector<unsigned char> answer(NS_MAXMSG);
  const int size =
      res_nsearch(&resolver, name.c_str(), ns_c_in, ns_t_srv, answer.data(), static_cast<int>(answer.size()));
  const int error = resolver.res_h_errno;
  res_nclose(&resolver);
  if (size >= 0) {
    answer.resize(std::min(answer.size(), static_cast<size_t>(size)));
    return ParseSrvAnswer(answer);
  }
  if (error == NO_DATA) return std::vector<HostPort>();
  if (error == HOST_NOT_FOUND) return NotFound("SRV records of ", name, ": there is no such name");
  return Unavailable("SRV records of ", name, ": ", hstrerror(error));
}

}  // namespace terrace
