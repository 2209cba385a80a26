#include "worker/formats/model_writer.h"

#include <algorithm>
#include <filesystem>

#include "text/text_files.h"
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

// Everything before the data of a .gguf file; `sizes` are those of the tensors' data.
StatusOr<std::string> GgufHeadOf(const ModelToWrite& model, const std::vector<uint64_t>& sizes) {
  std::vector<GgufKey> keys = GgufConfigKeys(model.config);
  ASSIGN_OR_RETURN(const std::vector<GgufKey> text, GgufTextKeys(model.text, model.used_tokens));
  keys.insert(keys.end(), text.begin(), text.end());
  std::vector<GgufTensorInfo> infos;
  uint64_t offset = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const ModelToWrite::Tensor& tensor = model.tensors[i];
    std::vector<uint64_t> dims = Dims(tensor.shape);
    std::ranges::reverse(dims);
    infos.push_back({tensor.name, std::move(dims), GgufTensorType(tensor.dtype), offset});
    offset = RoundUp(offset + sizes[i], kGgufAlignment);
  }
  return GgufHead(keys, infos);
}

StatusOr<std::string> SafetensorsHeadOf(const ModelToWrite& model, const std::vector<uint64_t>& sizes) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const ModelToWrite::Tensor& tensor = model.tensors[i];
    const DTypeInfo& dtype = Info(tensor.dtype);
    if (dtype.block_elements > 1)
      return InvalidArgument("tensor \"", tensor.name, "\": safetensors has no ", dtype.name, "; GGUF has");
    header[tensor.name] = SafetensorsEntry(dtype.name, Dims(tensor.shape), offset, sizes[i]);
    offset += sizes[i];
  }
  return SafetensorsHead(header);
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

StatusOr<std::unique_ptr<ModelWriter>> ModelWriter::Create(const std::string& path,
                                                           const ModelToWrite& model) {
  const bool is_gguf = model.config.names == NameScheme::kGguf;
  const uint64_t alignment = is_gguf ? kGgufAlignment : 1;
  std::vector<uint64_t> sizes;
  uint64_t end = 0;
  for (const ModelToWrite::Tensor& tensor : model.tensors) {
    const auto size = ByteCount(tensor.dtype, tensor.shape);
    if (!size.ok()) return Annotate(size.status(), Concat("tensor \"", tensor.name, "\""));
    sizes.push_back(*size);
    end = RoundUp(end + *size, alignment);
  }
  ASSIGN_OR_RETURN(const std::string head,
                   is_gguf ? GgufHeadOf(model, sizes) : SafetensorsHeadOf(model, sizes));

  ASSIGN_OR_RETURN(StagedPath staged, StagedPath::Create(path));
  if (!is_gguf) RETURN_IF_ERROR(WriteFolder(staged.temporary(), model));
  const std::string weights = staged.temporary() + (is_gguf ? "" : "/model.safetensors");
  ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(weights, head.size() + end));
  RETURN_IF_ERROR(file.Append(std::as_bytes(std::span(head))));
  return std::unique_ptr<ModelWriter>(
      new ModelWriter(std::move(staged), std::move(file), std::move(sizes), alignment));
}

Status ModelWriter::Append(std::span<const std::byte> bytes) {
  CHECK(tensor_ < sizes_.size() && bytes.size() <= sizes_[tensor_] - done_, bytes.size(),
        " bytes for tensor ", tensor_, " of ", sizes_.size());
  RETURN_IF_ERROR(file_.Append(bytes));
  done_ += bytes.size();
  if (done_ < sizes_[tensor_]) return Status();
  constexpr std::byte kPadding[kGgufAlignment] = {};  // the head ends aligned, so that offsets in the file do
  RETURN_IF_ERROR(file_.Append(std::span(kPadding).first(RoundUp(file_.size(), alignment_) - file_.size())));
  ++tensor_;
  done_ = 0;
  return Status();
}

StatusOr<Hash128> ModelWriter::Finish() {
  CHECK(tensor_ == sizes_.size(), "finished at tensor ", tensor_, " of ", sizes_.size());
  RETURN_IF_ERROR(file_.Close());
  const auto model = OpenModel(staged_.temporary());
  if (!model.ok()) return Internal("what was written does not open: ", Message(model.status()));
  RETURN_IF_ERROR(staged_.Commit());
  return model->digest;
}

}  // namespace terrace
