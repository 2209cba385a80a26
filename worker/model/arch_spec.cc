#include "worker/model/arch_spec.h"

namespace terrace {
namespace {

constexpr ArchSpec kArchSpecs[] = {
    {.family = "llama", .required_tensors = RequiredTensors},
};

}  // namespace

StatusOr<const ArchSpec*> FindArchSpec(std::string_view family) {
  std::string known;
  for (const ArchSpec& spec : kArchSpecs) {
    if (spec.family == family) return &spec;
    known += Concat(known.empty() ? "" : ", ", spec.family);
  }
  return WithReason(DataLoss("model family \"", family, "\", not one of ", known),
                    "unsupported_architecture");
}

}  // namespace terrace
