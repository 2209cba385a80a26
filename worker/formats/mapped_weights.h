// The WeightSource of both formats: tensors inside memory-mapped files. Immutable; any thread may read.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "worker/formats/digest_list.h"
#include "worker/formats/weight_source.h"

namespace terrace {

class MappedWeights final : public WeightSource {
 public:
  // `entries` borrow from `files`, `memory` and `makers`; names are unique. Data that is not aligned for its
  // dtype is copied.
  MappedWeights(std::string path, std::vector<std::unique_ptr<MappedFile>> files, std::vector<Entry> entries,
                std::vector<std::unique_ptr<std::byte[]>> memory = {},
                std::vector<std::unique_ptr<RowMaker>> makers = {});

  StatusOr<TensorView> Find(std::string_view name) const override;
  const std::vector<Entry>& entries() const override { return entries_; }
  const std::string& path() const override { return path_; }

  MappedFiles files() const { return files_; }  // in the order of the digest

 private:
  const std::string path_;
  const std::vector<std::unique_ptr<MappedFile>> files_;
  std::vector<std::unique_ptr<std::byte[]>> memory_;  // what was made, and copies
  const std::vector<std::unique_ptr<RowMaker>> makers_;
  std::vector<Entry> entries_;
  std::map<std::string_view, size_t> index_;  // name in entries_ -> position
};

}  // namespace terrace
