#include "worker/cuda/cublas_gemm.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace terrace {
namespace {

constexpr int kGuesses = 8;
static_assert(sizeof(GemmAlgorithm) == sizeof(cublasLtMatmulAlgo_t));

#define RETURN_IF_CUBLAS_ERROR(call)                                                     \
  do {                                                                                   \
    const cublasStatus_t cublas_error = (call);                                          \
    if (cublas_error != CUBLAS_STATUS_SUCCESS) return CublasStatus(cublas_error, #call); \
  } while (false)

// Of the device that is current.
StatusOr<GemmMachine> ThisMachine() {
  int device = 0, driver = 0;
  cudaDeviceProp properties = {};
  RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, device));
  RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&driver));
  return GemmMachine{.device = Concat(properties.name, ", ", properties.major, ".", properties.minor, ", ",
                                      properties.multiProcessorCount, " multiprocessors"),
                     .driver = static_cast<uint64_t>(driver),
                     .library = cublasLtGetVersion()};
}

}  // namespace

Status CublasStatus(cublasStatus_t status, std::string_view call, std::source_location at) {
  const std::string text = Concat(CallAt(call, at), ": ", cublasLtGetStatusString(status), " (",
                                  cublasLtGetStatusName(status), ")");
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return WithReason(Unimplemented(text), "unsupported_device");
  return WithReason(Internal(text), "device_error");
}

// Row-major [tokens, rows] is column-major [rows, tokens]: out = op(W) x, W [columns, rows] transposed.
struct CublasLt::Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t weights = nullptr, x = nullptr, out = nullptr;
  std::vector<cublasLtMatmulHeuristicResult_t> guesses;
  cublasLtMatmulAlgo_t algorithm = {};
  bool is_kept = false;  // the algorithm is an earlier process's choice, and the only guess
  ~Plan() {
    if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
    for (const auto layout : {weights, x, out}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
  }
};

CublasLt::CublasLt(const DeviceTuning& tuning, GemmMachine machine)
    : tuning_(tuning), choices_(tuning.folder, std::move(machine)) {}

StatusOr<std::unique_ptr<CublasLt>> CublasLt::Create(const DeviceTuning& tuning) {
  ASSIGN_OR_RETURN(GemmMachine machine, ThisMachine());
  auto out = std::unique_ptr<CublasLt>(new CublasLt(tuning, std::move(machine)));
  out->TellOnce(out->choices_.Read());
  RETURN_IF_CUBLAS_ERROR(cublasLtCreate(&out->handle_));
  ASSIGN_OR_RETURN(out->workspace_, CudaBuffer::Device(kWorkspaceBytes, "cuBLASLt workspace"));
  return out;
}

CublasLt::~CublasLt() {
  plans_.clear();
  if (handle_ != nullptr) cublasLtDestroy(handle_);
}

void CublasLt::TellOnce(const Status& status) {
  if (status.ok() || std::exchange(is_told_, true) || !tuning_.on_failed) return;
  tuning_.on_failed(status);
}

GemmShape CublasLt::ShapeOf(const CublasGemm& g) {
  return {.tokens = g.tokens,
          .rows = g.rows,
          .columns = g.columns,
          .is_e4m3 = g.x_scales != nullptr,
          .out_is_f32 = g.out_is_f32,
          .adds_to_out = g.add_to_out};
}

StatusOr<std::unique_ptr<CublasLt::Plan>> CublasLt::MakePlan(const CublasGemm& g, bool uses_kept) const {
  auto plan = std::make_unique<Plan>();
  const bool is_e4m3 = g.x_scales != nullptr;
  const cudaDataType_t in = is_e4m3 ? CUDA_R_8F_E4M3 : CUDA_R_16BF,
                       out = g.out_is_f32 ? CUDA_R_32F : CUDA_R_16BF;
  RETURN_IF_CUBLAS_ERROR(cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    return cublasLtMatmulDescSetAttribute(plan->operation, attribute, &value, sizeof(value));
  };
  RETURN_IF_CUBLAS_ERROR(set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
  if (is_e4m3) {
    const auto by_row = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    RETURN_IF_CUBLAS_ERROR(set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, by_row));
    RETURN_IF_CUBLAS_ERROR(set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, by_row));
    RETURN_IF_CUBLAS_ERROR(set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, g.weight_scales));
    RETURN_IF_CUBLAS_ERROR(set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, g.x_scales));
  }
  RETURN_IF_CUBLAS_ERROR(cublasLtMatrixLayoutCreate(&plan->weights, in, g.columns, g.rows, g.columns));
  RETURN_IF_CUBLAS_ERROR(cublasLtMatrixLayoutCreate(&plan->x, in, g.columns, g.tokens, g.columns));
  RETURN_IF_CUBLAS_ERROR(cublasLtMatrixLayoutCreate(&plan->out, out, g.rows, g.tokens, g.rows));

  if (const GemmAlgorithm* const kept = uses_kept ? choices_.Find(ShapeOf(g)) : nullptr) {
    std::memcpy(&plan->algorithm, kept->data(), sizeof(plan->algorithm));
    cublasLtMatmulHeuristicResult_t result = {};
    if (cublasLtMatmulAlgoCheck(handle_, plan->operation, plan->weights, plan->x, plan->out, plan->out,
                                &plan->algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
        result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= workspace_.bytes()) {
      result.algo = plan->algorithm;
      plan->guesses = {result};
      plan->is_kept = true;
      return plan;
    }
  }

  cublasLtMatmulPreference_t preference = nullptr;
  RETURN_IF_CUBLAS_ERROR(cublasLtMatmulPreferenceCreate(&preference));
  const size_t bytes = workspace_.bytes();
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                       sizeof(bytes));
  plan->guesses.resize(kGuesses);
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, plan->operation, plan->weights, plan->x, plan->out, plan->out,
                                     preference, kGuesses, plan->guesses.data(), &found);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
    return WithReason(Unimplemented(CallAt("cublasLtMatmulAlgoGetHeuristic"), ": no algorithm for ", g.tokens,
                                    " x ", g.rows, " x ", g.columns, is_e4m3 ? " in FP8" : " in bf16", ": ",
                                    cublasLtGetStatusString(status)),
                      "unsupported_device");
  }
  plan->guesses.resize(static_cast<size_t>(found));
  plan->algorithm = plan->guesses.front().algo;
  return plan;
}

Status CublasLt::Multiply(Plan& plan, const CublasGemm& g, const cublasLtMatmulAlgo_t* algorithm,
                          cudaStream_t stream) {
  if (g.x_scales != nullptr) {
    RETURN_IF_CUBLAS_ERROR(cublasLtMatmulDescSetAttribute(
        plan.operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &g.weight_scales, sizeof(g.weight_scales)));
    RETURN_IF_CUBLAS_ERROR(cublasLtMatmulDescSetAttribute(
        plan.operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &g.x_scales, sizeof(g.x_scales)));
  }
  const float one = 1, beta = g.add_to_out ? 1 : 0;
  RETURN_IF_CUBLAS_ERROR(cublasLtMatmul(handle_, plan.operation, &one, g.weights, plan.weights, g.x, plan.x,
                                        &beta, g.out, plan.out, g.out, plan.out, algorithm, workspace_.data(),
                                        workspace_.bytes(), stream));
  return {};
}

Status CublasLt::Run(const CublasGemm& gemm, cudaStream_t stream) {
  std::unique_ptr<Plan>& plan = plans_[ShapeOf(gemm)];
  if (plan == nullptr) {
    auto made = MakePlan(gemm, /*uses_kept=*/true);
    if (!made.ok()) {
      plans_.erase(ShapeOf(gemm));
      return made.status();
    }
    plan = *std::move(made);
    plan->guesses.clear();
  }
  const Status status = Multiply(*plan, gemm, &plan->algorithm, stream);
  if (status.ok() || !plan->is_kept) return status;
  // What was kept passed its check and does not run all the same.
  ASSIGN_OR_RETURN(plan, MakePlan(gemm, /*uses_kept=*/false));
  plan->guesses.clear();
  return Multiply(*plan, gemm, &plan->algorithm, stream);
}

StatusOr<double> CublasLt::Tune(std::span<const CublasGemm> samples, cudaStream_t stream) {
  CHECK(!samples.empty());
  ASSIGN_OR_RETURN(std::unique_ptr<Plan> plan, MakePlan(samples.front(), /*uses_kept=*/true));
  StatusOr<double> seconds = TimeGuesses(*plan, samples, stream);
  if (!seconds.ok() && plan->is_kept) {
    ASSIGN_OR_RETURN(plan, MakePlan(samples.front(), /*uses_kept=*/false));
    seconds = TimeGuesses(*plan, samples, stream);
  }
  RETURN_IF_ERROR(seconds.status());
  if (!plan->is_kept) {
    GemmAlgorithm chosen;
    std::memcpy(chosen.data(), &plan->algorithm, sizeof(chosen));
    TellOnce(choices_.Keep(ShapeOf(samples.front()), chosen));
  }
  plan->guesses.clear();
  plans_[ShapeOf(samples.front())] = std::move(plan);
  return seconds;
}

// Leaves the fastest as the plan's algorithm; the mean seconds of a sample with it.
StatusOr<double> CublasLt::TimeGuesses(Plan& plan, std::span<const CublasGemm> samples, cudaStream_t stream) {
  cudaEvent_t begin = nullptr, end = nullptr;
  RETURN_IF_CUDA_ERROR(cudaEventCreate(&begin));
  RETURN_IF_CUDA_ERROR(cudaEventCreate(&end));
  double best = -1;
  for (const cublasLtMatmulHeuristicResult_t& guess : plan.guesses) {
    bool works = true;
    float milliseconds = 0;
    for (int round = 0; round < 2 && works; ++round) {  // the first warms up
      cudaEventRecord(begin, stream);
      for (const CublasGemm& sample : samples) {
        works = works && Multiply(plan, sample, &guess.algo, stream).ok();
      }
      cudaEventRecord(end, stream);
      works = works && cudaEventSynchronize(end) == cudaSuccess &&
              cudaEventElapsedTime(&milliseconds, begin, end) == cudaSuccess;
    }
    const double seconds = milliseconds / 1e3 / static_cast<double>(samples.size());
    if (!works || (best >= 0 && seconds >= best)) continue;
    best = seconds;
    plan.algorithm = guess.algo;
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  if (best < 0) {
    RETURN_IF_CUDA_ERROR(cudaGetLastError());
    return WithReason(
        Unimplemented(CallAt("cublasLtMatmul"), ": none of ", plan.guesses.size(), " algorithms ran"),
        "unsupported_device");
  }
  return best;
}

}  // namespace terrace
