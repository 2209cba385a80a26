#include "tools/cli/synthesize.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/machine.h"
#include "base/mapped_file.h"
#include "tools/cli/format.h"
#include "tools/cli/progress_bar.h"
#include "tools/optimize/synthetic_text.h"
#include "worker/formats/model_files.h"

namespace terrace {
namespace {

constexpr size_t kMaxConfigBytes = 8 << 20;

StatusOr<ModelConfig> ReadShape(const SynthesizeOptions& options, const CommandContext& context) {
  if (options.config.empty()) return FindModelShape(options.shape);
  ASSIGN_OR_RETURN(const std::string text, ReadFile(options.config, kMaxConfigBytes));
  ASSIGN_OR_RETURN(const ModelConfig config, ParseConfigJson(text, options.config));
  for (const std::string& warning : config.warnings) context.err << warning << "\n";
  return config;
}

ModelFormat FormatOf(const SynthesizeOptions& options) {
  const bool is_gguf = options.format.empty() ? options.out.ends_with(".gguf") : options.format == "gguf";
  return is_gguf ? ModelFormat::kGguf : ModelFormat::kSafetensors;
}

}  // namespace

Status RunSynthesize(const SynthesizeOptions& options, const CommandContext& context) {
  const MonoTime start = RealClock().Now();
  ModelToSynthesize request;
  request.path = options.out;
  request.format = FormatOf(options);
  request.dtype = options.dtype;
  request.more_bits = options.more_bits;
  request.seed = options.seed;
  request.threads = options.threads > 0 ? options.threads : UsableCores();
  ASSIGN_OR_RETURN(const ModelConfig shape, ReadShape(options, context));
  ASSIGN_OR_RETURN(request.config, ChangeShape(shape, options.changes));
  if (options.tokenizer.empty()) {
    request.text = ByteLevelText();
  } else {
    ASSIGN_OR_RETURN(request.text, OpenText(options.tokenizer));
  }

  StatusOr<SynthesizedModel> model;
  {
    ProgressBar bar(context, "MiB");
    request.on_progress = [&](uint64_t done, uint64_t total) {
      bar.Show(done >> 20, total >> 20);
      return context.shutdown.WaitFor(0) == 0 ? Status() : Cancelled("interrupted");
    };
    model = Synthesize(request);
  }
  if (!model.ok()) return model.status();
  context.out << options.out << ": " << FormatCount(model->parameters) << " parameters, "
              << FormatBytes(model->weight_bytes) << " of weights, "
              << FormatSeconds(Seconds(RealClock().Now() - start)) << ", digest " << model->digest.Hex()
              << "\n";
  return Status();
}

}  // namespace terrace
