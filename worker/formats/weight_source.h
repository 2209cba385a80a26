// Where weights come from. Immutable after opening; any thread may read. Owns the memory maps: every
// TensorView it gave out dies with it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "worker/tensor/tensor.h"

namespace terrace {

class WeightSource {
 public:
  struct Entry {
    std::string name;  // as in the file, but of a stack of experts (expert_stacks.h)
    TensorView tensor;
    uint64_t offset = 0;    // of its data in its file
    std::string_view file;  // the path, borrowed from the source; "" for bytes in memory
  };

  virtual ~WeightSource() = default;
  // NOT_FOUND, reason missing_tensor, names the file and the tensor.
  virtual StatusOr<TensorView> Find(std::string_view name) const = 0;
  // All tensors, in file order.
  virtual const std::vector<Entry>& entries() const = 0;
  virtual const std::string& path() const = 0;
};

}  // namespace terrace
