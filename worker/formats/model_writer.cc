#include "worker/formats/model_writer.h"

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <tuple>
#include <utility>

#include "base/json.h"
#include "text/text_files.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/digest_list.h"
#include "worker/formats/expert_stacks.h"
#include "worker/formats/gguf_config.h"
#include "worker/formats/gguf_tokenizer.h"
#include "worker/formats/gguf_writer.h"
#include "worker/formats/model_files.h"
#include "worker/formats/safetensors_writer.h"

namespace terrace {
namespace {

std::vector<uint64_t> Dims(const Shape& shape) {
  return {shape.dims.begin(), shape.dims.begin() + static_cast<std::ptrdiff_t>(shape.rank)};
}

// The places in the data, from its start, of what is behind each tensor, padding included: what experts have
// lies in a stack, without gaps (expert_stacks.h).
std::vector<uint64_t> EndsOf(const ModelToWrite& model, const std::vector<uint64_t>& sizes) {
  const bool is_gguf = model.config.names == NameScheme::kGguf;
  const auto stack = [&](size_t i) { return i < sizes.size() ? StackOf(model.tensors[i].name) : ""; };
  std::vector<uint64_t> ends;
  uint64_t end = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const bool goes_on = !stack(i).empty() && stack(i) == stack(i + 1);
    end = RoundUp(end + sizes[i], is_gguf && !goes_on ? kGgufAlignment : 1);
    ends.push_back(end);
  }
  return ends;
}

// Everything before the data of a .gguf file; `sizes` are those of the tensors' data.
StatusOr<std::string> GgufHeadOf(const ModelToWrite& model, const std::vector<uint64_t>& sizes) {
  std::vector<GgufKey> keys = GgufConfigKeys(model.config);
  ASSIGN_OR_RETURN(const std::vector<GgufKey> text, GgufTextKeys(model.text, model.used_tokens));
  keys.insert(keys.end(), text.begin(), text.end());
  const std::vector<uint64_t> ends = EndsOf(model, sizes);
  std::vector<GgufTensorInfo> infos;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const ModelToWrite::Tensor& tensor = model.tensors[i];
    std::vector<uint64_t> dims = Dims(tensor.shape);
    std::ranges::reverse(dims);
    std::string name = tensor.name;
    if (std::string stack = StackOf(name); !stack.empty()) {
      if (!infos.empty() && infos.back().name == stack) {
        ++infos.back().dims.back();
        if (tensor.dtype == model.tensors[i - 1].dtype) continue;
        return InvalidArgument("tensor \"", name, "\": is ", Info(tensor.dtype).name,
                               ", and GGUF has all experts of a layer in one format");
      }
      name = std::move(stack);
      dims.push_back(1);
    }
    infos.push_back(
        {std::move(name), std::move(dims), GgufTensorType(tensor.dtype), i == 0 ? 0 : ends[i - 1]});
  }
  return GgufHead(keys, infos);
}

// Whether a folder stores this tensor in parts (compressed_tensors.h): one of a layer. What FP8 becomes an
// embedding may be, too, and matrices that are left.
bool IsInParts(const std::optional<WeightQuantization>& quantization, const ModelToWrite::Tensor& tensor) {
  return quantization && IsStoredInParts(*quantization, tensor.dtype) &&
         tensor.name.starts_with("model.layers.") &&
         std::ranges::count(quantization->float_modules, ModuleOf(tensor.name)) == 0;
}

// What Append takes of each tensor.
StatusOr<uint64_t> BytesOf(const ModelToWrite& model, const ModelToWrite::Tensor& tensor) {
  const auto bytes = ByteCount(tensor.dtype, tensor.shape);
  if (!bytes.ok()) return Annotate(bytes.status(), Concat("tensor \"", tensor.name, "\""));
  const DTypeInfo& dtype = Info(tensor.dtype);
  if (model.config.names == NameScheme::kGguf) {
    if (dtype.gguf_type < 0)
      return InvalidArgument("tensor \"", tensor.name, "\": GGUF has no ", dtype.name, "; a folder has");
    return *bytes;
  }
  if (!IsInParts(model.config.quantization, tensor)) {
    if (dtype.gguf_type >= 0 && dtype.block_elements == 1) return *bytes;
    return InvalidArgument("tensor \"", tensor.name, "\": safetensors has no ", dtype.name,
                           dtype.gguf_type >= 0 ? "; GGUF has" : " without a quantization that says so");
  }
  if (tensor.dtype == DType::kInt8) return *bytes + tensor.shape[0] * sizeof(float);
  const uint32_t group = model.config.quantization->group;
  if (group > 0 && tensor.shape[1] % group != 0)
    return InvalidArgument("tensor \"", tensor.name, "\": rows of ", tensor.shape[1],
                           " are not whole groups of ", group);
  return *bytes;
}

StatusOr<std::vector<uint64_t>> SizesOf(const ModelToWrite& model) {
  std::vector<uint64_t> sizes;
  for (const ModelToWrite::Tensor& tensor : model.tensors) {
    ASSIGN_OR_RETURN(sizes.emplace_back(), BytesOf(model, tensor));
  }
  return sizes;
}

// What a folder has of a tensor; `size` is that of its data.
std::vector<StoredTensor> StoredInFolder(const ModelToWrite& model, const ModelToWrite::Tensor& tensor,
                                         uint64_t size) {
  if (IsInParts(model.config.quantization, tensor))
    return StoredTensors(*model.config.quantization, tensor.name, tensor.dtype, tensor.shape);
  return {{tensor.name, Info(tensor.dtype).name, Dims(tensor.shape), size}};
}

// Of all tensors, in order.
std::vector<StoredTensor> StoredInFolder(const ModelToWrite& model, const std::vector<uint64_t>& sizes) {
  std::vector<StoredTensor> stored;
  for (size_t i = 0; i < sizes.size(); ++i) {
    for (StoredTensor& part : StoredInFolder(model, model.tensors[i], sizes[i]))
      stored.push_back(std::move(part));
  }
  return stored;
}

// The head, and how many bytes of data follow it.
std::pair<std::string, uint64_t> SafetensorsHeadOf(const std::vector<StoredTensor>& tensors) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const StoredTensor& tensor : tensors) {
    header[tensor.name] = SafetensorsEntry(tensor.dtype, tensor.shape, offset, tensor.bytes);
    offset += tensor.bytes;
  }
  return {SafetensorsHead(header), offset};
}

Status WriteWhole(const std::string& path, std::string_view text) {
  ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path, text.size()));
  RETURN_IF_ERROR(file.Append(std::as_bytes(std::span(text))));
  return file.Close();
}

// The folder, and all files in it but the weights.
Status WriteFolder(const std::string& folder, const ModelToWrite& model) {
  std::error_code error;
  if (!std::filesystem::create_directory(folder, error)) {
    const std::string message = Concat(folder, ": cannot create: ", error.message());
    return error == std::errc::no_such_file_or_directory ? NotFound(message) : Unavailable(message);
  }
  RETURN_IF_ERROR(WriteWhole(folder + "/config.json", ConfigJsonText(model.config)));
  for (const auto& [name, text] : TextFiles(model.text))
    RETURN_IF_ERROR(WriteWhole(Concat(folder, "/", name), text));
  return Status();
}

}  // namespace

StatusOr<std::vector<uint64_t>> StoredSizes(const ModelToWrite& model) {
  ASSIGN_OR_RETURN(const std::vector<uint64_t> sizes, SizesOf(model));
  std::vector<uint64_t> stored;
  if (model.config.names == NameScheme::kGguf) {
    stored = EndsOf(model, sizes);
    std::adjacent_difference(stored.begin(), stored.end(), stored.begin());
    return stored;
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    stored.push_back(0);
    for (const StoredTensor& part : StoredInFolder(model, model.tensors[i], sizes[i]))
      stored.back() += part.bytes;
  }
  return stored;
}

StatusOr<std::unique_ptr<ModelWriter>> ModelWriter::Create(const std::string& path, const ModelToWrite& model,
                                                           const std::string& temporary) {
  const bool is_gguf = model.config.names == NameScheme::kGguf;
  ASSIGN_OR_RETURN(std::vector<uint64_t> sizes, SizesOf(model));
  std::vector<uint64_t> ends = EndsOf(model, sizes);
  uint64_t end = ends.empty() ? 0 : ends.back();
  std::string head;
  if (is_gguf) {
    ASSIGN_OR_RETURN(head, GgufHeadOf(model, sizes));
  } else {
    std::tie(head, end) = SafetensorsHeadOf(StoredInFolder(model, sizes));
  }

  ASSIGN_OR_RETURN(StagedPath staged, StagedPath::Create(path, temporary));
  if (!is_gguf) RETURN_IF_ERROR(WriteFolder(staged.temporary(), model));
  const std::string weights = staged.temporary() + (is_gguf ? "" : "/model.safetensors");
  ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(weights, head.size() + end));
  RETURN_IF_ERROR(file.Append(std::as_bytes(std::span(head))));
  auto writer = std::unique_ptr<ModelWriter>(
      new ModelWriter(std::move(staged), std::move(file), std::move(sizes), std::move(ends)));
  writer->tensors_ = model.tensors;
  if (!is_gguf) writer->quantization_ = model.config.quantization;
  if (is_gguf) writer->old_list_ = DigestListPath(path);
  return writer;
}

Status ModelWriter::Append(std::span<const std::byte> bytes) {
  CHECK(tensor_ < sizes_.size() && bytes.size() <= sizes_[tensor_] - done_, bytes.size(),
        " bytes for tensor ", tensor_, " of ", sizes_.size());
  done_ += bytes.size();
  const bool is_whole = done_ == sizes_[tensor_];
  if (const ModelToWrite::Tensor& tensor = tensors_[tensor_]; IsInParts(quantization_, tensor)) {
    pending_.insert(pending_.end(), bytes.begin(), bytes.end());
    if (is_whole)
      RETURN_IF_ERROR(file_.Append(StoredBytes(*quantization_, tensor.dtype, tensor.shape, pending_)));
    if (is_whole) pending_.clear();
  } else {
    RETURN_IF_ERROR(file_.Append(bytes));
  }
  if (!is_whole) return Status();
  constexpr std::byte kPadding[kGgufAlignment] = {};  // the head ends aligned, so that offsets in the file do
  const uint64_t begin = tensor_ == 0 ? 0 : ends_[tensor_ - 1];
  RETURN_IF_ERROR(file_.Append(std::span(kPadding).first(ends_[tensor_] - begin - done_)));
  ++tensor_;
  done_ = 0;
  return Status();
}

StatusOr<Hash128> ModelWriter::Finish(const std::function<Status(const Hash128&)>& before_rename) {
  CHECK(tensor_ == sizes_.size(), "finished at tensor ", tensor_, " of ", sizes_.size());
  RETURN_IF_ERROR(file_.Close());
  const auto model = OpenModel(staged_.temporary());
  if (!model.ok()) return Internal("what was written does not open: ", Message(model.status()));
  if (before_rename) RETURN_IF_ERROR(before_rename(model->digest));
  std::error_code ignored;  // it would say what the new model is not
  if (!old_list_.empty()) std::filesystem::remove(old_list_, ignored);
  RETURN_IF_ERROR(staged_.Commit());
  return model->digest;
}

}  // namespace terrace
