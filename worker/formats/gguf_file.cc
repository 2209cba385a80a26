#include "worker/formats/gguf_file.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <set>

#include "text/unicode.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/expert_stacks.h"

namespace terrace {
namespace {

constexpr uint64_t kMaxTensors = 65'536, kMaxKeys = 65'536;
constexpr uint64_t kMaxKeyBytes = 65'535, kMaxNameBytes = 64;  // the format's own limits
constexpr uint64_t kMaxArrayElements = uint64_t{1} << 24;      // 16 vocabularies of the largest kind
constexpr uint64_t kDefaultAlignment = 32, kMinAlignment = 8, kMaxAlignment = 1 << 16;

// Bytes of one element; a string takes at least its length.
std::optional<uint64_t> SizeOf(GgufType type) {
  switch (type) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
    case GgufType::kString:
      return 8;
    case GgufType::kArray:
      return std::nullopt;
  }
  return std::nullopt;  // a number that is no type
}

std::string_view NameOf(GgufType type) {
  constexpr std::string_view kNames[] = {"uint8", "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
                                         "bool",  "string", "array",  "uint64", "int64",  "float64"};
  return kNames[static_cast<size_t>(type)];
}

// ggml's tensor types by number; "" where a number was never used or its type was removed.
std::string_view TensorTypeName(uint32_t type) {
  constexpr std::string_view kNames[] = {
      "F32",    "F16",   "Q4_0",  "Q4_1",   "",      "",      "Q5_0",    "Q5_1",   "Q8_0",    "Q8_1",
      "Q2_K",   "Q3_K",  "Q4_K",  "Q5_K",   "Q6_K",  "Q8_K",  "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",
      "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",    "I16",   "I32",     "I64",    "F64",     "IQ1_M",
      "BF16",   "",      "",      "",       "TQ1_0", "TQ2_0", "",        "",       "",        "MXFP4"};
  return type < std::size(kNames) ? kNames[type] : "";
}

std::optional<DType> SupportedDType(uint32_t type) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.gguf_type >= 0 && static_cast<uint32_t>(info.gguf_type) == type) return info.dtype;
  }
  return std::nullopt;
}

// "F32, F16, ..."
std::string SupportedNames() {
  std::string out;
  for (const DTypeInfo& info : kDTypes) {
    if (info.gguf_type >= 0) out += Concat(out.empty() ? "" : ", ", info.name);
  }
  return out;
}

// A length-prefixed string that must be plain and within `limit`: a key or a tensor's name.
StatusOr<std::string_view> ReadName(ByteReader& in, uint64_t limit, std::string_view reason) {
  const uint64_t offset = in.offset();
  ASSIGN_OR_RETURN(const uint64_t length, in.Read<uint64_t>());
  if (length == 0 || length > limit)
    return Malformed(reason, "a name of ", length, " bytes at byte ", offset, ", limits 1 and ", limit);
  ASSIGN_OR_RETURN(const auto bytes, in.Read(length));
  const std::string_view name = AsText(bytes);
  if (!IsPlainName(name)) return Malformed(reason, "the name at byte ", offset, " is not printable ASCII");
  return name;
}

Status CheckBools(std::span<const std::byte> values, uint64_t offset) {
  for (const std::byte value : values) {
    if (value > std::byte{1})
      return Malformed("bad_value", "a bool is neither 0 nor 1, in the value at byte ", offset);
  }
  return Status();
}

// One value of a fixed type, or `count` of them one after the other.
StatusOr<GgufValue> ReadElements(ByteReader& in, std::span<const std::byte> file, GgufType type,
                                 uint64_t count) {
  GgufValue value = {.type = type, .count = count, .offset = in.offset(), .bytes = {}};
  if (type != GgufType::kString) {
    ASSIGN_OR_RETURN(value.bytes, in.Read(count * *SizeOf(type)));
    if (type == GgufType::kBool) RETURN_IF_ERROR(CheckBools(value.bytes, value.offset));
    return value;
  }
  for (uint64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const uint64_t length, in.Read<uint64_t>());
    const uint64_t offset = in.offset();
    ASSIGN_OR_RETURN(const auto bytes, in.Read(length));
    if (!IsValidUtf8(AsText(bytes)))
      return Malformed("bad_value", "the string at byte ", offset, " is not UTF-8");
  }
  value.bytes = file.subspan(value.offset, in.offset() - value.offset);
  return value;
}

StatusOr<GgufType> ReadType(ByteReader& in) {
  const uint64_t offset = in.offset();
  ASSIGN_OR_RETURN(const uint32_t number, in.Read<uint32_t>());
  if (number > static_cast<uint32_t>(GgufType::kFloat64))
    return Malformed("type_mismatch", "unknown value type ", number, " at byte ", offset);
  return static_cast<GgufType>(number);
}

StatusOr<GgufValue> ReadValue(ByteReader& in, std::span<const std::byte> file) {
  ASSIGN_OR_RETURN(const GgufType type, ReadType(in));
  if (type != GgufType::kArray) return ReadElements(in, file, type, 1);
  const uint64_t offset = in.offset();
  ASSIGN_OR_RETURN(const GgufType element, ReadType(in));
  if (element == GgufType::kArray) return Malformed("type_mismatch", "an array of arrays at byte ", offset);
  ASSIGN_OR_RETURN(const uint64_t count, in.Read<uint64_t>());
  if (count > kMaxArrayElements)
    return Malformed("count_limit", count, " array elements at byte ", offset + 4, ", limit ",
                     kMaxArrayElements);
  if (count > in.remaining() / *SizeOf(element))
    return Malformed("truncated", count, " array elements at byte ", offset + 4,
                     " in a file that ends at byte ", file.size());
  ASSIGN_OR_RETURN(GgufValue value, ReadElements(in, file, element, count));
  value.is_array = true;
  return value;
}

StatusOr<uint64_t> ReadCount(ByteReader& in, std::string_view what, uint64_t limit) {
  const uint64_t offset = in.offset();
  ASSIGN_OR_RETURN(const uint64_t count, in.Read<uint64_t>());
  if (count > limit)
    return Malformed("count_limit", count, " ", what, " at byte ", offset, ", limit ", limit);
  return count;
}

Status CheckMagicAndVersion(ByteReader& in) {
  ASSIGN_OR_RETURN(const auto magic, in.Read(4));
  if (AsText(magic) != "GGUF") return Malformed("bad_magic", "byte 0 does not begin \"GGUF\"");
  ASSIGN_OR_RETURN(const uint32_t version, in.Read<uint32_t>());
  if (version == 2 || version == 3) return Status();
  if (version == 0x0200'0000 || version == 0x0300'0000)
    return Malformed("bad_version",
                     "the file is big-endian (byte 4); only little-endian files are supported");
  return Malformed("bad_version", "version ", version, " at byte 4, supported are 2 and 3");
}

StatusOr<uint64_t> AlignmentOf(const GgufMetadata& metadata) {
  constexpr std::string_view kKey = "general.alignment";
  const auto found = metadata.values().find(kKey);
  if (found == metadata.values().end()) return kDefaultAlignment;
  if (found->second.is_array || found->second.type != GgufType::kUint32)
    return metadata.Error("bad_alignment", kKey, "must be a uint32");
  const uint32_t alignment = ByteReader::Load<uint32_t>(found->second.bytes);
  if (alignment < kMinAlignment || alignment > kMaxAlignment || !std::has_single_bit(alignment))
    return metadata.Error(
        "bad_alignment", kKey,
        Concat(alignment, " is not a power of two from ", kMinAlignment, " to ", kMaxAlignment));
  return alignment;
}

struct TensorInfo {
  WeightSource::Entry entry;  // without its data
  uint64_t data_offset = 0;   // from the start of the data
  uint64_t offset_field = 0;  // where the file says so
};

// Shape, type and offset of the tensor whose name was just read.
Status ReadTensorInfo(ByteReader& in, TensorInfo& info) {
  uint64_t offset = in.offset();
  ASSIGN_OR_RETURN(const uint32_t rank, in.Read<uint32_t>());
  if (rank < 1 || rank > Shape::kMaxRank)
    return Malformed("bad_shape", rank, " dimensions at byte ", offset, ", limits 1 and ", Shape::kMaxRank);
  TensorView& tensor = info.entry.tensor;
  tensor.shape.rank = rank;
  for (size_t i = rank; i-- > 0;) {  // the file has the innermost dimension first
    offset = in.offset();
    ASSIGN_OR_RETURN(tensor.shape.dims[i], in.Read<uint64_t>());
    if (tensor.shape[i] < 1 || tensor.shape[i] > std::numeric_limits<int64_t>::max())
      return Malformed("bad_shape", "a dimension of ", tensor.shape[i], " at byte ", offset);
  }
  offset = in.offset();
  ASSIGN_OR_RETURN(const uint32_t type, in.Read<uint32_t>());
  const auto dtype = SupportedDType(type);
  if (!dtype && TensorTypeName(type).empty())
    return Malformed("bad_dtype", "unknown type number ", type, " at byte ", offset);
  if (!dtype)
    return Malformed("bad_dtype", "type ", TensorTypeName(type), " at byte ", offset,
                     " is not supported; supported are ", SupportedNames());
  tensor.dtype = *dtype;
  const auto bytes = ByteCount(*dtype, tensor.shape);
  if (!bytes.ok())
    return Malformed(Reason(bytes.status()), Message(bytes.status()), " (before byte ", offset, ")");
  tensor.bytes = *bytes;
  info.offset_field = in.offset();
  ASSIGN_OR_RETURN(info.data_offset, in.Read<uint64_t>());
  return Status();
}

// Points `info` at its bytes in `data`, which begins at byte `data_start` of the file.
Status LocateData(TensorInfo& info, std::span<const std::byte> data, uint64_t data_start,
                  uint64_t alignment) {
  TensorView& tensor = info.entry.tensor;
  if (info.data_offset % alignment != 0)
    return Malformed("bad_offset", "offset ", info.data_offset, " at byte ", info.offset_field,
                     " is not a multiple of the alignment ", alignment);
  if (info.data_offset > data.size())
    return Malformed("bad_offset", "offset ", info.data_offset, " at byte ", info.offset_field,
                     " is past the end of the ", data.size(), " bytes of data");
  if (tensor.bytes > data.size() - info.data_offset)
    return Malformed("truncated", tensor.bytes, " bytes of data begin at byte ",
                     data_start + info.data_offset, ", the file ends at byte ", data_start + data.size());
  tensor.data = data.data() + info.data_offset;
  info.entry.offset = data_start + info.data_offset;
  return Status();
}

Status CheckOverlap(const std::vector<TensorInfo>& infos) {
  std::vector<const TensorInfo*> by_offset;
  for (const TensorInfo& info : infos) by_offset.push_back(&info);
  std::sort(by_offset.begin(), by_offset.end(),
            [](const auto* a, const auto* b) { return a->data_offset < b->data_offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const TensorInfo &before = *by_offset[i - 1], &after = *by_offset[i];
    if (after.data_offset - before.data_offset < before.entry.tensor.bytes)
      return Malformed("bad_offset", "tensor \"", after.entry.name, "\": offset ", after.data_offset,
                       " at byte ", after.offset_field, " lies inside tensor \"", before.entry.name, "\"");
  }
  return Status();
}

int64_t IntegerAt(const GgufValue& value, uint64_t i) {
  const auto at = value.bytes.subspan(i * *SizeOf(value.type));
  switch (value.type) {
    case GgufType::kUint8:
      return ByteReader::Load<uint8_t>(at);
    case GgufType::kInt8:
      return ByteReader::Load<int8_t>(at);
    case GgufType::kUint16:
      return ByteReader::Load<uint16_t>(at);
    case GgufType::kInt16:
      return ByteReader::Load<int16_t>(at);
    case GgufType::kUint32:
      return ByteReader::Load<uint32_t>(at);
    case GgufType::kInt32:
      return ByteReader::Load<int32_t>(at);
    case GgufType::kUint64:
      return static_cast<int64_t>(
          std::min<uint64_t>(ByteReader::Load<uint64_t>(at), std::numeric_limits<int64_t>::max()));
    default:
      return ByteReader::Load<int64_t>(at);
  }
}

bool IsInteger(GgufType type) {
  return type != GgufType::kFloat32 && type != GgufType::kFloat64 && type != GgufType::kBool &&
         type != GgufType::kString;
}

}  // namespace

Status GgufMetadata::Error(std::string_view reason, std::string_view key, std::string_view message) const {
  return Malformed(reason, "key \"", key, "\": ", message, " (value at byte ", values_.at(key).offset, ")");
}

StatusOr<GgufValue> GgufMetadata::Get(std::string_view key, bool is_array) const {
  const auto found = values_.find(key);
  if (found == values_.end()) return Malformed("missing_key", "no key \"", key, "\"");
  if (found->second.is_array != is_array)
    return Error("type_mismatch", key, is_array ? "is not an array" : "is an array, not one value");
  return found->second;
}

StatusOr<int64_t> GgufMetadata::Integer(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue value, Get(key, false));
  if (!IsInteger(value.type))
    return Error("type_mismatch", key, Concat("is a ", NameOf(value.type), ", not an integer"));
  return IntegerAt(value, 0);
}

StatusOr<double> GgufMetadata::Float(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue value, Get(key, false));
  if (value.type == GgufType::kFloat32) return ByteReader::Load<float>(value.bytes);
  if (value.type == GgufType::kFloat64) return ByteReader::Load<double>(value.bytes);
  return Error("type_mismatch", key, Concat("is a ", NameOf(value.type), ", not a float"));
}

StatusOr<bool> GgufMetadata::Bool(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue value, Get(key, false));
  if (value.type != GgufType::kBool)
    return Error("type_mismatch", key, Concat("is a ", NameOf(value.type), ", not a bool"));
  return value.bytes[0] == std::byte{1};
}

StatusOr<std::string_view> GgufMetadata::String(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue value, Get(key, false));
  if (value.type != GgufType::kString)
    return Error("type_mismatch", key, Concat("is a ", NameOf(value.type), ", not a string"));
  return AsText(value.bytes.subspan(8));
}

StatusOr<std::vector<std::string_view>> GgufMetadata::Strings(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue value, Get(key, true));
  if (value.type != GgufType::kString)
    return Error("type_mismatch", key, Concat("is an array of ", NameOf(value.type), ", not of strings"));
  std::vector<std::string_view> strings;
  ByteReader in(value.bytes);
  for (uint64_t i = 0; i < value.count; ++i) {
    ASSIGN_OR_RETURN(const uint64_t length, in.Read<uint64_t>());
    ASSIGN_OR_RETURN(const auto bytes, in.Read(length));
    strings.push_back(AsText(bytes));
  }
  return strings;
}

StatusOr<std::vector<int64_t>> GgufMetadata::Integers(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue value, Get(key, true));
  if (!IsInteger(value.type))
    return Error("type_mismatch", key, Concat("is an array of ", NameOf(value.type), ", not of integers"));
  std::vector<int64_t> integers;
  for (uint64_t i = 0; i < value.count; ++i) integers.push_back(IntegerAt(value, i));
  return integers;
}

StatusOr<std::vector<float>> GgufMetadata::Floats(std::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue value, Get(key, true));
  if (value.type != GgufType::kFloat32)
    return Error("type_mismatch", key, Concat("is an array of ", NameOf(value.type), ", not of float32"));
  std::vector<float> floats;
  for (uint64_t i = 0; i < value.count; ++i)
    floats.push_back(ByteReader::Load<float>(value.bytes.subspan(i * sizeof(float))));
  return floats;
}

StatusOr<GgufContents> ParseGguf(std::span<const std::byte> file) {
  ByteReader in(file);
  GgufContents contents;
  RETURN_IF_ERROR(CheckMagicAndVersion(in));
  ASSIGN_OR_RETURN(const uint64_t tensor_count, ReadCount(in, "tensors", kMaxTensors));
  ASSIGN_OR_RETURN(const uint64_t key_count, ReadCount(in, "keys", kMaxKeys));

  for (uint64_t i = 0; i < key_count; ++i) {
    const uint64_t offset = in.offset();
    ASSIGN_OR_RETURN(const std::string_view key, ReadName(in, kMaxKeyBytes, "bad_key"));
    const auto value = ReadValue(in, file);
    if (!value.ok()) return Annotate(value.status(), Concat("key \"", key, "\""));
    if (!contents.metadata.Add(key, *value))
      return Malformed("bad_key", "key \"", key, "\" occurs twice, the second time at byte ", offset);
  }
  ASSIGN_OR_RETURN(const uint64_t alignment, AlignmentOf(contents.metadata));

  std::vector<TensorInfo> infos;
  std::set<std::string_view> names;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    const uint64_t offset = in.offset();
    ASSIGN_OR_RETURN(const std::string_view name, ReadName(in, kMaxNameBytes, "bad_name"));
    if (!names.insert(name).second)
      return Malformed("bad_name", "tensor \"", name, "\" occurs twice, the second time at byte ", offset);
    infos.push_back({.entry = {.name = std::string(name), .tensor = {}, .file = {}}});
    RETURN_IF_ERROR(Annotate(ReadTensorInfo(in, infos.back()), Concat("tensor \"", name, "\"")));
  }

  const uint64_t data_start =
      std::min<uint64_t>((in.offset() + alignment - 1) / alignment * alignment, file.size());
  for (TensorInfo& info : infos)
    RETURN_IF_ERROR(Annotate(LocateData(info, file.subspan(data_start), data_start, alignment),
                             Concat("tensor \"", info.entry.name, "\"")));
  RETURN_IF_ERROR(CheckOverlap(infos));
  for (TensorInfo& info : infos) contents.entries.push_back(std::move(info.entry));
  RETURN_IF_ERROR(SplitStacks(contents.entries));
  return contents;
}

StatusOr<GgufFile> OpenGguf(const std::string& path) {
  ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
  auto contents = ParseGguf(file->bytes());
  if (!contents.ok()) return Annotate(contents.status(), path);
  for (auto& entry : contents->entries) entry.file = file->path();
  std::vector<std::unique_ptr<MappedFile>> files;
  files.push_back(std::move(file));
  return GgufFile{
      .weights = std::make_unique<MappedWeights>(path, std::move(files), std::move(contents->entries)),
      .metadata = std::move(contents->metadata)};
}

}  // namespace terrace
