// Writes a model tensor by tensor: a .gguf file or a Hugging Face style folder. It appears at its path when
// all of it is written, and a writer that is destroyed before that leaves nothing behind. One thread at a
// time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/status.h"
#include "text/text_assets.h"
#include "worker/formats/model_config.h"
#include "worker/formats/staged_path.h"
#include "worker/tensor/tensor.h"

namespace terrace {

struct ModelToWrite {
  ModelConfig config;  // its name scheme says what is written: kGguf a file, kHuggingFace a folder
  TextAssets text;
  size_t used_tokens = 0;  // later ones are marked as unused (GGUF)
  struct Tensor {
    std::string name;
    DType dtype = DType::kF32;
    Shape shape;
  };
  std::vector<Tensor> tensors = {};  // in the order of their data
};

// What the weight file will have of each tensor, in their order, without its head: the tensors' data, what
// lies beside it in folders, and padding. The errors that ModelWriter::Create has for a tensor.
StatusOr<std::vector<uint64_t>> StoredSizes(const ModelToWrite& model);

class ModelWriter {
 public:
  // Writes everything but the tensors' data. INVALID_ARGUMENT when something is at `path`, for a dtype that
  // the format lacks (in a folder Q8_0 and its like, and INT4 or INT8 unless config.quantization is theirs;
  // in GGUF those two) and for rows that are not whole blocks of their dtype; the errors of OutputFile.
  // `temporary` is as of StagedPath.
  static StatusOr<std::unique_ptr<ModelWriter>> Create(const std::string& path, const ModelToWrite& model,
                                                       const std::string& temporary = "");

  // The next bytes of the data of the tensors, one after the other; never of two tensors in one call. Of INT8
  // the codes, then the f32 scales of the rows.
  Status Append(std::span<const std::byte> bytes);

  // After the data of all tensors: opens the model as a worker would, calls `before_rename` with its digest,
  // and renames it. Returns the digest; an error of `before_rename` leaves nothing behind. A digest list of a
  // model that was at the path before goes.
  StatusOr<Hash128> Finish(const std::function<Status(const Hash128&)>& before_rename = nullptr);

  uint64_t size() const { return file_.size(); }  // of the weight file, as far as it is written

 private:
  ModelWriter(StagedPath staged, OutputFile file, std::vector<uint64_t> sizes, std::vector<uint64_t> ends)
      : staged_(std::move(staged)),
        file_(std::move(file)),
        sizes_(std::move(sizes)),
        ends_(std::move(ends)) {}

  StagedPath staged_;
  OutputFile file_;                    // the weight file
  const std::vector<uint64_t> sizes_;  // of each tensor's data
  const std::vector<uint64_t> ends_;   // of each tensor's data with its padding, in a .gguf file
  std::string old_list_;               // where a digest list may be left: beside a .gguf file
  std::optional<WeightQuantization> quantization_;
  std::vector<ModelToWrite::Tensor> tensors_;
  std::vector<std::byte> pending_;  // what there is of one that is stored as several
  size_t tensor_ = 0;               // the one that is being written,
  uint64_t done_ = 0;               // and how much of it is
};

}  // namespace terrace
