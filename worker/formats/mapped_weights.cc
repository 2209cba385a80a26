#include "worker/formats/mapped_weights.h"

#include <algorithm>
#include <cstring>

namespace terrace {
namespace {

size_t AlignmentOf(DType dtype) { return dtype == DType::kF32 ? 4 : dtype == DType::kInt8 ? 1 : 2; }

}  // namespace

MappedWeights::MappedWeights(std::string path, std::vector<std::unique_ptr<MappedFile>> files,
                             std::vector<Entry> entries, std::vector<std::unique_ptr<std::byte[]>> memory,
                             std::vector<std::unique_ptr<RowMaker>> makers)
    : path_(std::move(path)),
      files_(std::move(files)),
      memory_(std::move(memory)),
      makers_(std::move(makers)),
      entries_(std::move(entries)) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    CHECK(index_.emplace(entries_[i].name, i).second, "tensor ", entries_[i].name, " occurs twice");
    TensorView& tensor = entries_[i].tensor;
    if (reinterpret_cast<uintptr_t>(tensor.data) % AlignmentOf(tensor.dtype) == 0) continue;
    memory_.push_back(std::make_unique_for_overwrite<std::byte[]>(tensor.bytes));
    std::memcpy(memory_.back().get(), tensor.data, tensor.bytes);
    tensor.data = memory_.back().get();
  }
}

StatusOr<TensorView> MappedWeights::Find(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end())
    return WithReason(NotFound(path_, ": no tensor \"", name, "\""), "missing_tensor");
  return entries_[found->second].tensor;
}

}  // namespace terrace
