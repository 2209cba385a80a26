// Which addresses a tier's workers have. Static lists and DNS names here; a fake in cluster_test.cc.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace terrace {

class Discovery {
 public:
  virtual ~Discovery() = default;
  // host:port of every worker now, sorted, each once. May block: called only by the cluster's discovery
  // thread. An error keeps the addresses known so far.
  virtual StatusOr<std::vector<std::string>> Resolve() = 0;
};

// Entries are host:port, or dns:///host:port for every address of a name. INVALID_ARGUMENT for anything else.
StatusOr<std::unique_ptr<Discovery>> MakeDiscovery(const std::vector<std::string>& workers);

}  // namespace terrace
