// The CUDA backend against the limits of the device, which are measured first: kernels one by one, then whole
// steps of a model of Llama 3.1 8B's shape with random weights. Results are checked to be finite, no more:
// tests check what they are.
//
//   tests/gpu/run_bundle.sh bench --json bench.json      about 170 s of device time
//   tests/gpu/run_bundle.sh bench --quick --only decode
//   tests/gpu/run_bundle.sh bench --only load --load-folder /dev/shm
//
// Exit code 0 when everything ran, goals missed or not; 69 without a GPU; 70 after an error of the device.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "base/build_id.h"
#include "base/exit_code.h"
#include "base/format.h"
#include "base/version.h"
#include "tests/gpu/bench_model.h"

namespace terrace {
namespace {

struct Flags {
  std::vector<std::string> only;
  std::string json, model, load_folder, first_token, compute = "auto", commit;
  bool is_quick = false;
};

struct Part {
  const char* name;
  double seconds;
  Status (*run)(BenchContext& bench, const Flags& flags);
};

const Part kParts[] = {
    {"kernels", 29, [](BenchContext& bench, const Flags&) { return BenchKernels(bench); }},
    {"layer", 12, [](BenchContext& bench, const Flags&) { return BenchLayer(bench); }},
    {"products", 20, [](BenchContext& bench, const Flags&) { return BenchWideGemm(bench); }},
    {"sparse", 14, [](BenchContext& bench, const Flags&) { return BenchSparse(bench); }},
    {"families", 8, [](BenchContext& bench, const Flags&) { return BenchFamilies(bench); }},
    {"experts", 12, [](BenchContext& bench, const Flags&) { return BenchExperts(bench); }},
    {"prefill_attention", 10, [](BenchContext& bench, const Flags&) { return BenchPrefillAttention(bench); }},
    {"decode", 18, [](BenchContext& bench, const Flags&) { return BenchDecode(bench); }},
    {"engine_host_gap", 8, [](BenchContext& bench, const Flags&) { return BenchEngineHostGap(bench); }},
    {"drafts", 12, [](BenchContext& bench, const Flags&) { return BenchDrafts(bench); }},
    {"prefill", 14, [](BenchContext& bench, const Flags&) { return BenchPrefill(bench); }},
    {"invariant", 20,
     [](BenchContext& bench, const Flags&) {
       const Status status = BenchInvariant(bench);
       return status.ok() ? BenchInvariantKernels(bench) : status;
     }},
    {"memory", 6, [](BenchContext& bench, const Flags& flags) { return BenchMemory(bench, flags.model); }},
    {"load", 90, [](BenchContext& bench, const Flags& flags) { return BenchLoad(bench, flags.load_folder); }},
    {"load_folders", 180,
     [](BenchContext& bench, const Flags& flags) { return BenchLoadFolders(bench, flags.load_folder); }},
};

Status Run(const Flags& flags) {
  BenchReport report(flags.json, flags.is_quick ? 0.35 : 1);
  ASSIGN_OR_RETURN(const CudaStream stream, CudaStream::Create());
  const int rounds = flags.is_quick ? 3 : 7;
  report.Build({{"version", kVersion},
                {"build", OwnBuildId()},
                {"commit", flags.commit},
                {"date", UtcNow("%Y-%m-%dT%H:%M:%SZ")}});
  report.Begin("limits", 5);
  ASSIGN_OR_RETURN(const GpuLimits limits, MeasureGpuLimits(report, stream.get(), rounds));
  report.End();
  BenchWeights weights;
  BenchContext bench = {.report = report,
                        .limits = limits,
                        .weights = weights,
                        .stream = stream.get(),
                        .is_quick = flags.is_quick,
                        .rounds = rounds};
  for (const Part& part : kParts) {
    if (!flags.only.empty() && std::ranges::find(flags.only, part.name) == flags.only.end()) continue;
    report.Begin(part.name, part.seconds);
    Status status = report.SkipOr(part.name, part.run(bench, flags));
    report.End();
    RETURN_IF_ERROR(status);
  }
  std::printf("\n%s: %zu goals missed\n", limits.device.c_str(), report.missed());
  return {};
}

int Main(const Flags& flags) {
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no GPU: %s\n", error == cudaSuccess ? "none found" : cudaGetErrorString(error));
    return kExitUnavailable;
  }
  const Status status =
      flags.first_token.empty() ? Run(flags) : PrintFirstToken(flags.first_token, flags.compute);
  if (status.ok()) return kExitOk;
  std::fflush(stdout);
  std::fprintf(stderr, "%s\n", Message(status).c_str());
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  terrace::Flags flags;
  CLI::App app("The CUDA backend against the limits of the device");
  std::vector<std::string> names = {"limits"};
  for (const terrace::Part& part : terrace::kParts) names.push_back(part.name);
  app.add_option("--only", flags.only, "parts; default: all")->delimiter(',')->check(CLI::IsMember(names));
  app.add_option("--json", flags.json, "file for the results, written again after each part");
  app.add_option("--commit", flags.commit, "what this was built of, for the results");
  app.add_option("--model", flags.model, "a model to load: a folder or a .gguf file");
  app.add_option("--load-folder", flags.load_folder,
                 "where the parts `load` and `load_folders` write what they load, up to 16 and 25 GB; else "
                 "they are skipped");
  app.add_option("--first-token", flags.first_token, "what `load` runs: loads a model and asks for a token");
  app.add_option("--compute", flags.compute, "of the model of --first-token: auto or fp8");
  app.add_flag("--quick", flags.is_quick, "fewer shapes and rounds, about 30 s");
  CLI11_PARSE(app, argc, argv);
  return terrace::Main(flags);
}
