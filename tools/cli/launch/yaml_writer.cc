#include "tools/cli/launch/yaml_writer.h"

#include <cstdio>

#include "base/json.h"

namespace terrace {
namespace {

using google::protobuf::FieldDescriptor;
using ProtoMessage = google::protobuf::Message;

std::string Number(double value) {
  char text[32];
  return std::string(text, std::snprintf(text, sizeof(text), "%.17g", value));
}

// Field `field` of `message`, element `index` when it is repeated. Only scalars.
std::string Scalar(const ProtoMessage& message, const FieldDescriptor* field, int index) {
  const auto* reflection = message.GetReflection();
  const bool is_repeated = field->is_repeated();
  switch (field->cpp_type()) {
#define SCALAR_OF(Type) \
  (is_repeated ? reflection->GetRepeated##Type(message, field, index) : reflection->Get##Type(message, field))
    case FieldDescriptor::CPPTYPE_STRING:
      return ToJsonText(SCALAR_OF(String));  // a JSON string is a YAML string
    case FieldDescriptor::CPPTYPE_BOOL:
      return SCALAR_OF(Bool) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_INT32:
      return std::to_string(SCALAR_OF(Int32));
    case FieldDescriptor::CPPTYPE_INT64:
      return std::to_string(SCALAR_OF(Int64));
    case FieldDescriptor::CPPTYPE_UINT32:
      return std::to_string(SCALAR_OF(UInt32));
    case FieldDescriptor::CPPTYPE_UINT64:
      return std::to_string(SCALAR_OF(UInt64));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return Number(SCALAR_OF(Float));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return Number(SCALAR_OF(Double));
    case FieldDescriptor::CPPTYPE_ENUM:
      return SCALAR_OF(Enum)->name();
#undef SCALAR_OF
    case FieldDescriptor::CPPTYPE_MESSAGE:
      break;
  }
  CHECK(false, "a message is no scalar: ", field->full_name());
}

// Flow style (braces and brackets) below the fields of the document.
std::string Flow(const ProtoMessage& message) {
  const auto* reflection = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  std::string out;
  for (const FieldDescriptor* field : fields) {
    const bool is_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    std::string value;
    if (field->is_repeated()) {
      for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
        if (i > 0) value += ", ";
        value +=
            is_message ? Flow(reflection->GetRepeatedMessage(message, field, i)) : Scalar(message, field, i);
      }
      value = Concat("[", value, "]");
    } else {
      value = is_message ? Flow(reflection->GetMessage(message, field)) : Scalar(message, field, 0);
    }
    out += Concat(out.empty() ? "" : ", ", field->name(), ": ", value);
  }
  return Concat("{", out, "}");
}

}  // namespace

std::string ToYaml(const google::protobuf::Message& message) { return Concat(Flow(message), "\n"); }

}  // namespace terrace
