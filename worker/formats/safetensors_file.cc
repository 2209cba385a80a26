#include "worker/formats/safetensors_file.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "base/json.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/compressed_tensors.h"
#include "worker/formats/file_kind.h"

namespace terrace {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
// Of experts there are tens of thousands of matrices, each of which may be several tensors.
constexpr size_t kMaxTensors = 262'144, kMaxShards = 4096, kMaxNameBytes = 512;
constexpr uint64_t kLengthBytes = 8;  // what precedes the header
constexpr std::string_view kInHeader = " (in the header, which begins at byte 8)";
constexpr std::string_view kIndexName = "model.safetensors.index.json";

// The header as JSON; what is wrong with it, even a passed limit of the parser, is bad_header.
StatusOr<Json> ParseHeader(std::string_view text) {
  if (text.front() != '{')
    return Malformed("bad_header", "the header at byte ", kLengthBytes, " does not begin with {");
  auto header = ParseJson(text, {.bytes = kMaxHeaderBytes, .depth = 8, .nodes = kMaxTensors * 16});
  if (!header.ok()) return Malformed("bad_header", Message(header.status()), kInHeader);
  return header;
}

Status CheckMetadata(const Json& metadata) {
  if (!metadata.is_object()) return Malformed("bad_header", "__metadata__ is not an object");
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string()) return Malformed("bad_header", "__metadata__: \"", key, "\" is not a string");
  }
  return Status();
}

// Of an element; nothing for dtypes that no tensor of a model has.
std::optional<uint64_t> ElementBytes(const Json& dtype) {
  constexpr struct {
    const char* name;
    uint64_t bytes;
  } kElements[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I8", 1}, {"F8_E4M3", 1}, {"I32", 4}, {"I64", 8}};
  for (const auto& element : kElements) {
    if (dtype == element.name) return element.bytes;
  }
  return std::nullopt;
}

StatusOr<Shape> ParseShape(const Json& dims) {
  if (!dims.is_array()) return Malformed("bad_header", "shape is not an array");
  if (dims.size() > Shape::kMaxRank)
    return Malformed("bad_shape", dims.size(), " dimensions, limit ", Shape::kMaxRank);
  Shape shape;
  for (const Json& dim : dims) {
    if (!dim.is_number_unsigned() || dim == 0)
      return Malformed("bad_shape", "a dimension of ", ToJsonText(dim));
    shape.dims[shape.rank++] = dim.get<uint64_t>();
  }
  return shape;
}

// Whether `data` is a whole tensor of this description; its shape.
StatusOr<Shape> CheckData(const Json& description, std::span<const std::byte> data) {
  const auto element = ElementBytes(description["dtype"]);
  if (!element)
    return Malformed(
        "bad_dtype", "dtype ", ToJsonText(description["dtype"]).substr(0, 32),
        " is not supported; supported are F32, F16 and BF16, of quantized models I8, F8_E4M3, I32 and I64");
  ASSIGN_OR_RETURN(const Shape shape, ParseShape(description["shape"]));
  const auto elements = ElementCount(shape);
  if (!elements.ok()) return AsDataLoss(elements.status());
  if (data.size() % *element != 0 || data.size() / *element != *elements)
    return Malformed("bad_shape", "shape ", shape.ToString(), " has ", *elements, " elements of ", *element,
                     " bytes, data_offsets span ", data.size(), " bytes");
  return shape;
}

StatusOr<SafetensorsTensor> ParseTensor(const std::string& name, const Json& description,
                                        std::span<const std::byte> data, uint64_t data_start) {
  if (!description.is_object() || description.size() != 3 || !description.contains("dtype") ||
      !description.contains("shape") || !description.contains("data_offsets"))
    return Malformed("bad_header", "is not described by exactly dtype, shape and data_offsets", kInHeader);
  const Json& offsets = description["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned())
    return Malformed("bad_offset", "data_offsets are not two whole numbers", kInHeader);
  const uint64_t begin = offsets[0], end = offsets[1];
  if (begin > end || end > data.size())
    return Malformed("bad_offset", "data_offsets [", begin, ", ", end, "] do not lie in the ", data.size(),
                     " bytes of data that begin at byte ", data_start);
  data = data.subspan(begin, end - begin);
  const auto shape = CheckData(description, data);
  if (!shape.ok())
    return Malformed(Reason(shape.status()), Message(shape.status()), " (data at byte ", data_start + begin,
                     ")");
  return SafetensorsTensor{.name = name,
                           .dtype = description["dtype"].get<std::string>(),
                           .shape = *shape,
                           .data = data,
                           .offset = data_start + begin};
}

// Sorts by offset; the tensors must cover the file from `data_start` to `file_bytes` exactly.
Status CheckCoverage(std::vector<SafetensorsTensor>& tensors, uint64_t data_start, uint64_t file_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  uint64_t end = data_start;
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.offset != end)
      return Malformed("bad_offset", "tensor \"", tensor.name, "\": its data begins at byte ", tensor.offset,
                       tensor.offset < end ? ", inside" : ", after a hole behind",
                       " the tensor before it, which ends at byte ", end);
    end += tensor.data.size();
  }
  if (end != file_bytes)
    return Malformed("bad_offset", "the last tensor ends at byte ", end, ", the file at byte ", file_bytes);
  return Status();
}

StatusOr<std::vector<SafetensorsTensor>> ParseNamed(const MappedFile& file) {
  auto tensors = ParseSafetensors(file.bytes(), file.path());
  if (!tensors.ok()) return Annotate(tensors.status(), file.path());
  return tensors;
}

StatusOr<std::unique_ptr<MappedWeights>> MakeWeights(const std::string& path,
                                                     std::vector<std::unique_ptr<MappedFile>> files,
                                                     const std::vector<SafetensorsTensor>& tensors,
                                                     const WeightQuantization* quantization) {
  ASSIGN_OR_RETURN(KernelTensors made, MakeKernelTensors(tensors, quantization));
  return std::make_unique<MappedWeights>(path, std::move(files), std::move(made.entries),
                                         std::move(made.memory), std::move(made.makers));
}

// Which shard holds which tensors, from the text of an index.
using ShardMap = std::map<std::string, std::set<std::string>>;

bool IsFileName(const std::string& name) {
  return IsPlainName(name) && name.find_first_of("/\\") == std::string::npos &&
         name.find("..") == std::string::npos && name.ends_with(".safetensors");
}

StatusOr<ShardMap> ParseIndex(std::string_view text) {
  const auto index = ParseJson(text, {.bytes = kMaxHeaderBytes, .depth = 8, .nodes = kMaxTensors * 4});
  if (!index.ok()) return Malformed("bad_index", Message(index.status()));
  const Json weight_map = index->is_object() ? index->value("weight_map", Json()) : Json();
  if (!weight_map.is_object() || weight_map.empty())
    return Malformed("bad_index", "key \"weight_map\" is not an object");
  ShardMap shards;
  for (const auto& [tensor, shard] : weight_map.items()) {
    if (!IsPlainName(tensor) || tensor.size() > kMaxNameBytes)
      return Malformed("bad_index", "weight_map: a tensor's name is not 1 to ", kMaxNameBytes,
                       " bytes of printable ASCII");
    if (!shard.is_string() || !IsFileName(shard))
      return Malformed("bad_index", "tensor \"", tensor, "\": shard ", ToJsonText(shard).substr(0, 100),
                       " is not the plain name of a .safetensors file");
    shards[shard].insert(tensor);
  }
  if (shards.size() > kMaxShards)
    return Malformed("count_limit", shards.size(), " shards, limit ", kMaxShards);
  return shards;
}

Status CheckShard(const std::string& shard, const std::set<std::string>& expected,
                  const std::vector<SafetensorsTensor>& tensors) {
  std::set<std::string_view> present;
  for (const auto& tensor : tensors) {
    if (!expected.contains(tensor.name))
      return Malformed("bad_index", "tensor \"", tensor.name, "\" is in shard ", shard,
                       ", where the index does not put it");
    present.insert(tensor.name);
  }
  for (const std::string& name : expected) {
    if (!present.contains(name))
      return Malformed("bad_index", "tensor \"", name, "\" is not in shard ", shard);
  }
  return Status();
}

Status NoWeights(const std::string& directory) {
  for (const std::string_view pickle : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (MappedFile::Open(Concat(directory, "/", pickle)).ok())
      return Malformed("unsupported_format", directory, ": has its weights in ", pickle,
                       ", which is never unpickled; convert them to safetensors");
  }
  return NotFound(directory, ": neither model.safetensors nor ", kIndexName);
}

StatusOr<std::unique_ptr<MappedWeights>> OpenShards(const std::string& directory,
                                                    const WeightQuantization* quantization) {
  const std::string path = Concat(directory, "/", kIndexName);
  const auto text = ReadFile(path, kMaxHeaderBytes);
  if (!text.ok()) return AsDataLoss(text.status());
  const auto shards = ParseIndex(*text);
  if (!shards.ok()) return Annotate(shards.status(), path);
  std::vector<std::unique_ptr<MappedFile>> files;
  std::vector<SafetensorsTensor> all;
  for (const auto& [shard, expected] : *shards) {
    auto file = MappedFile::Open(Concat(directory, "/", shard));
    if (file.status().code() == StatusCode::kNotFound)
      return Malformed("bad_index", path, ": shard ", shard, ": ", Message(file.status()));
    RETURN_IF_ERROR(file.status());
    ASSIGN_OR_RETURN(auto tensors, ParseNamed(**file));
    RETURN_IF_ERROR(Annotate(CheckShard(shard, expected, tensors), path));
    std::move(tensors.begin(), tensors.end(), std::back_inserter(all));
    files.push_back(*std::move(file));
  }
  return MakeWeights(path, std::move(files), all, quantization);
}

}  // namespace

StatusOr<std::vector<SafetensorsTensor>> ParseSafetensors(std::span<const std::byte> file,
                                                          std::string_view path) {
  RETURN_IF_ERROR(RefuseForeignFormat(file));
  ByteReader in(file);
  const auto length = in.Read<uint64_t>();
  if (!length.ok()) return Malformed("header_limit", Message(length.status()));
  if (*length < 2 || *length > kMaxHeaderBytes || *length > in.remaining())
    return Malformed("header_limit", "a header of ", *length, " bytes (length at byte 0), limits 2 and ",
                     std::min(kMaxHeaderBytes, in.remaining()));
  ASSIGN_OR_RETURN(const auto text, in.Read(*length));
  ASSIGN_OR_RETURN(const Json header, ParseHeader(AsText(text)));
  if (header.size() > kMaxTensors + 1)
    return Malformed("count_limit", header.size(), " tensors, limit ", kMaxTensors);

  const std::span<const std::byte> data = file.subspan(in.offset());
  std::vector<SafetensorsTensor> tensors;
  for (const auto& [name, description] : header.items()) {
    if (name == "__metadata__") {
      RETURN_IF_ERROR(CheckMetadata(description));
      continue;
    }
    if (!IsPlainName(name) || name.size() > kMaxNameBytes)
      return Malformed("bad_name", "a tensor's name in the header is not 1 to ", kMaxNameBytes,
                       " bytes of printable ASCII");
    auto tensor = ParseTensor(name, description, data, in.offset());
    if (!tensor.ok()) return Annotate(tensor.status(), Concat("tensor \"", name, "\""));
    tensor->file = path;
    tensors.push_back(*std::move(tensor));
  }
  RETURN_IF_ERROR(CheckCoverage(tensors, in.offset(), file.size()));
  return tensors;
}

StatusOr<std::unique_ptr<MappedWeights>> OpenSafetensors(const std::string& directory,
                                                         const WeightQuantization* quantization) {
  const std::string path = directory + "/model.safetensors";
  auto file = MappedFile::Open(path);
  if (file.status().code() == StatusCode::kNotFound) {
    auto shards = OpenShards(directory, quantization);
    if (shards.status().code() == StatusCode::kNotFound) return NoWeights(directory);
    return shards;
  }
  RETURN_IF_ERROR(file.status());
  ASSIGN_OR_RETURN(const auto tensors, ParseNamed(**file));
  std::vector<std::unique_ptr<MappedFile>> files;
  files.push_back(*std::move(file));
  return MakeWeights(path, std::move(files), tensors, quantization);
}

}  // namespace terrace
