#include "worker/formats/safetensors_file.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "base/json.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/file_kind.h"

namespace terrace {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxTensors = 65'536, kMaxShards = 4096, kMaxNameBytes = 512;
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

std::optional<DType> SupportedDType(const Json& name) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (name == std::string(Info(dtype).name)) return dtype;
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

// The tensor whose data is `data`.
StatusOr<TensorView> ParseView(const Json& description, std::span<const std::byte> data) {
  const auto dtype = SupportedDType(description["dtype"]);
  if (!dtype)
    return Malformed("bad_dtype", "dtype ", ToJsonText(description["dtype"]).substr(0, 32),
                     " is not supported; supported are F32, F16 and BF16");
  ASSIGN_OR_RETURN(const Shape shape, ParseShape(description["shape"]));
  const auto bytes = ByteCount(*dtype, shape);
  if (!bytes.ok()) return AsDataLoss(bytes.status());
  if (data.size() != *bytes)
    return Malformed("bad_shape", "shape ", shape.ToString(), " of ", Info(*dtype).name, " takes ", *bytes,
                     " bytes, data_offsets span ", data.size());
  return TensorView{.dtype = *dtype, .shape = shape, .data = data.data(), .bytes = *bytes};
}

StatusOr<WeightSource::Entry> ParseTensor(const std::string& name, const Json& description,
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
  const auto view = ParseView(description, data.subspan(begin, end - begin));
  if (!view.ok())
    return Malformed(Reason(view.status()), Message(view.status()), " (data at byte ", data_start + begin,
                     ")");
  return WeightSource::Entry{.name = name, .tensor = *view, .offset = data_start + begin, .file = {}};
}

// Sorts by offset; the tensors must cover the file from `data_start` to `file_bytes` exactly.
Status CheckCoverage(std::vector<WeightSource::Entry>& tensors, uint64_t data_start, uint64_t file_bytes) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
  uint64_t end = data_start;
  for (const WeightSource::Entry& entry : tensors) {
    if (entry.offset != end)
      return Malformed("bad_offset", "tensor \"", entry.name, "\": its data begins at byte ", entry.offset,
                       entry.offset < end ? ", inside" : ", after a hole behind",
                       " the tensor before it, which ends at byte ", end);
    end += entry.tensor.bytes;
  }
  if (end != file_bytes)
    return Malformed("bad_offset", "the last tensor ends at byte ", end, ", the file at byte ", file_bytes);
  return Status();
}

StatusOr<std::vector<WeightSource::Entry>> ParseNamed(const MappedFile& file) {
  auto entries = ParseSafetensors(file.bytes());
  if (!entries.ok()) return Annotate(entries.status(), file.path());
  for (auto& entry : *entries) entry.file = file.path();
  return entries;
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
                  const std::vector<WeightSource::Entry>& entries) {
  std::set<std::string_view> present;
  for (const auto& entry : entries) {
    if (!expected.contains(entry.name))
      return Malformed("bad_index", "tensor \"", entry.name, "\" is in shard ", shard,
                       ", where the index does not put it");
    present.insert(entry.name);
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

StatusOr<std::unique_ptr<MappedWeights>> OpenShards(const std::string& directory) {
  const std::string path = Concat(directory, "/", kIndexName);
  const auto text = ReadFile(path, kMaxHeaderBytes);
  if (!text.ok()) return AsDataLoss(text.status());
  const auto shards = ParseIndex(*text);
  if (!shards.ok()) return Annotate(shards.status(), path);
  std::vector<std::unique_ptr<MappedFile>> files;
  std::vector<WeightSource::Entry> all;
  for (const auto& [shard, expected] : *shards) {
    auto file = MappedFile::Open(Concat(directory, "/", shard));
    if (!file.ok()) return Malformed("bad_index", path, ": shard ", shard, ": ", Message(file.status()));
    ASSIGN_OR_RETURN(auto entries, ParseNamed(**file));
    RETURN_IF_ERROR(Annotate(CheckShard(shard, expected, entries), path));
    std::move(entries.begin(), entries.end(), std::back_inserter(all));
    files.push_back(*std::move(file));
  }
  return std::make_unique<MappedWeights>(path, std::move(files), std::move(all));
}

}  // namespace

StatusOr<std::vector<WeightSource::Entry>> ParseSafetensors(std::span<const std::byte> file) {
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
  std::vector<WeightSource::Entry> tensors;
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
    tensors.push_back(*std::move(tensor));
  }
  RETURN_IF_ERROR(CheckCoverage(tensors, in.offset(), file.size()));
  return tensors;
}

StatusOr<std::unique_ptr<MappedWeights>> OpenSafetensors(const std::string& directory) {
  const std::string path = directory + "/model.safetensors";
  auto file = MappedFile::Open(path);
  if (!file.ok()) {
    auto shards = OpenShards(directory);
    if (shards.status().code() == StatusCode::kNotFound) return NoWeights(directory);
    return shards;
  }
  ASSIGN_OR_RETURN(auto entries, ParseNamed(**file));
  std::vector<std::unique_ptr<MappedFile>> files;
  files.push_back(*std::move(file));
  return std::make_unique<MappedWeights>(path, std::move(files), std::move(entries));
}

}  // namespace terrace
