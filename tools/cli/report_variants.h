// The rows that `terrace report` can be asked for: models and how they run, cascades of them, and techniques
// that it makes itself. Pure but for the last four.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/descriptor.h"
#include "base/status.h"
#include "tools/cli/command_context.h"
#include "tools/cli/model_target.h"
#include "tools/optimize/calibration.h"

namespace terrace {

struct ReportVariant {
  std::string name = {};                    // IsTechniqueName, without + and @, which cascades have
  std::string model = {};                   // folder or .gguf
  std::string compute = {}, kv_dtype = {};  // "": as of the baseline
  std::string drafter = "none", draft_model = {};
};

// "NAME=PATH[,kv=TYPE][,compute=TYPE][,draft=PATH]", where draft=ngram is the n-gram drafter. The path has no
// comma. INVALID_ARGUMENT says what is wrong; whether types and paths are any is for CheckVariants.
StatusOr<ReportVariant> ParseVariant(std::string_view text);

// A row for each threshold.
struct ReportCascade {
  std::vector<std::string> tiers = {};  // names of rows, cheapest first, two or more, all different
  std::vector<double> thresholds = {};  // mean log-probabilities, at most 0

  std::string RowName(double threshold) const;  // "small+large@-0.05"
};

// "SMALL+LARGE@T[,T...]". INVALID_ARGUMENT says what is wrong.
StatusOr<ReportCascade> ParseCascade(std::string_view text);

inline constexpr char kBaseline[] = "baseline";  // the name of the row that others are compared with

// Names are all different, and cascades are of models that have one. `row` is what messages call what has the
// names. INVALID_ARGUMENT.
Status CheckNames(std::span<const std::string> techniques, std::span<const ReportVariant> variants,
                  std::span<const ReportCascade> cascades, const char* row);

// What comes of putting `variants`, of which the first is the baseline, together: every model with its own
// weights, every type of keys and values and every drafter that one of them has alone, in all combinations
// that none of them is. Named after their parts: "int8.kv-int8.ngram".
std::vector<ReportVariant> CombinationsOf(std::span<const ReportVariant> variants);

// `baseline` with a variant's model and types. Who drafts is left to the caller.
ModelTarget TargetOf(ModelTarget baseline, const ReportVariant& variant);

// A technique by its name, of the baseline: another format of its weights, which is made, or another way to
// run it.
struct ReportTechnique {
  std::string_view name;
  std::string_view target = "", method = "";  // of Quantize; "": the baseline's own weights
  std::string_view kv_dtype = "";             // "": the baseline's
  std::string_view drafter = "none";
  // Formats are mixed: the target is the smallest one, and all weights take at most MakeOptions::mixed_bytes.
  bool is_mixed = false;
};
inline constexpr ReportTechnique kReportTechniques[] = {
    {.name = "int8", .target = "int8", .method = "rtn"},
    {.name = "int4-rtn", .target = "int4-g32", .method = "rtn"},
    {.name = "int4-gptq", .target = "int4-g32", .method = "gptq"},
    {.name = "int4-awq", .target = "int4-g32", .method = "awq"},
    {.name = "mixed", .target = "int4-g64", .method = "gptq", .is_mixed = true},
    {.name = "fp8", .target = "fp8", .method = "rtn"},
    {.name = "q8_0", .target = "q8_0", .method = "rtn"},
    {.name = "q6_k", .target = "q6_k", .method = "rtn"},
    {.name = "q4_k", .target = "q4_k", .method = "rtn"},
    {.name = "q4_0", .target = "q4_0", .method = "rtn"},
    {.name = "kv-int8", .kv_dtype = "int8"},
    {.name = "kv-fp8", .kv_dtype = "fp8"},
    {.name = "ngram", .drafter = "ngram"}};

const ReportTechnique* FindTechnique(std::string_view name);  // null: none is named so
std::string TechniqueNames();                                 // "int8, int4-rtn, ..."

// What would else come to light only after hours: every technique is known and has its calibration text,
// every path is there, and every type is one. INVALID_ARGUMENT, NOT_FOUND.
Status CheckVariants(std::span<const std::string> techniques, std::span<const ReportVariant> variants,
                     const CalibrationOptions& calibration);

// The name that stands for every technique.
inline constexpr char kAllTechniques[] = "all";

// `names` with all techniques that `baseline` and the options can do in place of "all"; `notes` gets a line
// for each that they cannot, with the reason. What is named itself stays, whether it can be done or not.
// NOT_FOUND and errors of OpenModel.
StatusOr<std::vector<std::string>> ExpandTechniques(std::span<const std::string> names,
                                                    const std::string& baseline,
                                                    const CalibrationOptions& calibration,
                                                    uint64_t mixed_bytes, std::string& notes);

// Likewise, that each technique can be made of `baseline`, a model, and that a mixture fits `mixed_bytes`, as
// of MakeOptions. The techniques are known. INVALID_ARGUMENT names the technique or --mixed-fit; errors of
// OpenModel.
Status CheckTargets(std::span<const std::string> techniques, const std::string& baseline,
                    uint64_t mixed_bytes);

// Makes --work and folders in it. They are the caller's as long as the result lives: two that measure at once
// would have each other's work in their times. UNAVAILABLE, also where another process is at work there.
StatusOr<Descriptor> OpenWorkFolder(const std::string& work, std::span<const char* const> folders);

struct MakeOptions {
  std::string baseline = {};              // a model, and
  std::string baseline_digest = {};       // ModelFiles::digest of it, and
  std::string baseline_text_digest = {};  // Digest of its text
  std::string folder = {};                // for models, there
  CalibrationOptions calibration = {};    // of those methods that need it
  uint64_t mixed_bytes = 0;               // 0: what kUniformSize everywhere takes
  uint32_t threads = 0;                   // 0: all cores
};

// The target whose size a mixture has by default: that of the other INT4 techniques, so that what differs is
// how well the bytes are spent.
inline constexpr char kUniformSize[] = "int4-g32";

// The technique as a variant. Its model is made in the folder, or is there from before: FAILED_PRECONDITION
// when that is of another baseline, target, method, budget, calibration or version. Errors of Quantize.
StatusOr<ReportVariant> MakeVariant(const ReportTechnique& technique, const MakeOptions& options,
                                    const CommandContext& context);

}  // namespace terrace
