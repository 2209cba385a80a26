// `terrace synthesize`: a model of any shape with random weights, for measurements.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/optimize/model_shapes.h"
#include "tools/optimize/synthesize.h"

namespace terrace {

struct SynthesizeOptions {
  std::string out;
  std::string shape;   // one of kModelShapes; or
  std::string config;  // a config.json
  ShapeChanges changes;
  DType dtype = DType::kF16;
  bool more_bits = false;  // see ModelToSynthesize
  uint64_t seed = 0;
  std::string format;     // "gguf" or "safetensors"; empty: by the path
  std::string tokenizer;  // the model whose tokenizer is taken; empty: one token a byte
  uint32_t threads = 0;   // 0: all cores this process may use
};

Status RunSynthesize(const SynthesizeOptions& options, const CommandContext& context);

}  // namespace terrace
