// What `terrace distill` is asked, and what comes of it. Values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/status.h"
#include "kernels/dtype.h"
#include "tools/distill/acceptance.h"
#include "tools/distill/trainer.h"

namespace terrace {

struct StepReport {
  uint64_t step = 0, steps = 0;  // done, of all
  uint64_t tokens = 0, all_tokens = 0;
  double learning_rate = 0;
  StepLosses losses = {};
};

struct DistillRequest {
  std::string teacher = {}, out = {};
  // The student, one of: a model to go on from, a config.json of a fresh one, so many layers of the teacher.
  // None with is_draft: DraftConfig of the teacher.
  std::string student = {}, config = {};
  uint32_t layers = 0;
  bool is_draft = false;  // acceptance is measured, too
  DType dtype = DType::kF16;

  std::vector<std::string> data = {};  // JSON lines (training_rows.h)
  std::string validation = {};         // likewise; empty: rows of the data are held out
  uint32_t validation_rows = 256;  // at most, drawn by the seed; of held-out ones a tenth of the rows at most
  uint32_t max_tokens = 0;         // of a row; 0: what the contexts of both models allow

  uint64_t tokens = 0;                                 // to train on, about; 0: each row once
  uint32_t batch_tokens = 8192, memory_tokens = 4096;  // as of TrainingPlanOptions
  double learning_rate = 1e-3;                         // the highest
  double warmup = 0.02;                                // share of the steps
  uint64_t seed = 0;                                   // of orders, draws and fresh weights
  TrainerOptions trainer = {};

  std::string teacher_cache =
      {};               // a file, made where it is not there; empty: the teacher is asked each time
  uint32_t top_k = 64;  // of it

  uint32_t checkpoint_steps = 100;
  // Asked between batches and answers that are measured, before and after the training and of a draft:
  // CANCELLED.
  std::function<bool()> is_cancelled = nullptr;
  // Called after each step, and while a cache is made, with rows; an error of it ends the work and is
  // returned. With CANCELLED the state is saved first.
  std::function<Status(const StepReport&)> on_step = [](const StepReport&) { return Status(); };
  std::function<Status(uint64_t done, uint64_t total)> on_cache = [](uint64_t, uint64_t) { return Status(); };
};

struct DistillReport {
  uint64_t parameters = 0;
  uint64_t rows = 0, held_out = 0;  // trained on; measured on
  uint64_t cut = 0, left_out = 0;   // of TrainingRows
  uint64_t steps = 0, tokens = 0;
  uint64_t resumed_from = 0;  // steps that an earlier run had done
  Measurement before = {}, after = {};
  std::optional<DraftAcceptance> acceptance = {};  // of drafts
  Hash128 digest = {};                             // of the output: ModelFiles::digest
  std::string path = {};                           // of the report
};

}  // namespace terrace
