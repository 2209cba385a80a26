#include "tools/distill/distill.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <memory>
#include <numeric>
#include <span>
#include <system_error>
#include <utility>

#include "base/build_id.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/parallel_for.h"
#include "base/shuffle.h"
#include "base/version.h"
#include "kernels/op_table.h"
#include "tools/distill/acceptance.h"
#include "tools/distill/checkpoint.h"
#include "tools/distill/model_weights.h"
#include "tools/distill/teacher_cache.h"
#include "tools/distill/training_plan.h"
#include "tools/distill/training_rows.h"
#include "tools/optimize/journal.h"
#include "tools/quality/scoring_model.h"
#include "worker/formats/byte_reader.h"
#include "worker/formats/model_files.h"
#include "worker/formats/staged_path.h"
#include "worker/formats/tensor_names.h"

namespace terrace {
namespace {

namespace fs = std::filesystem;

// What TorchLlama computes.
Status CheckFamily(const std::string& path, const ModelConfig& config) {
  if (IsPlainLlama(config)) return Status();
  return WithReason(
      DataLoss(
          path, ": is of the family ", config.family,
          "; distill takes models of the shape of Llama 2: no windows, biases, scaled RoPE or other norms"),
      "unsupported_architecture");
}

constexpr size_t kMaxConfigBytes = 8 << 20;
constexpr size_t kHeldOutShare = 10;    // a tenth of the rows at most
constexpr size_t kAcceptanceRows = 64;  // of the held-out ones, at most
constexpr size_t kPromptShare = 4;      // of a plain text a quarter is the prompt
constexpr uint64_t kMaxTokens = 100'000'000'000;
constexpr char kCheckpoint[] = "checkpoint", kBefore[] = "before";  // parts of the journal

Json ToJson(const Measurement& measured) {
  return {{"positions", measured.positions},
          {"loss", measured.loss},
          {"labels", measured.labels},
          {"kl", measured.kl},
          {"agreement", measured.agreement}};
}

StatusOr<Measurement> ParseMeasurement(std::string_view text) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(text));
  Measurement out;
  if (!json.is_object() || !json.value("positions", Json()).is_number_unsigned())
    return DataLoss("a part of the journal is no measurement");
  out.positions = json["positions"].get<uint64_t>();
  for (const auto& [key, value] : {std::pair("loss", &out.loss),
                                   {"labels", &out.labels},
                                   {"kl", &out.kl},
                                   {"agreement", &out.agreement}}) {
    if (!json.contains(key) || !json[key].is_number())
      return DataLoss("a part of the journal lacks \"", key, "\"");
    *value = json[key].get<double>();
  }
  return out;
}

Status CheckVocabularies(const TextAssets& teacher_text, uint32_t teacher_vocab, const TextAssets& text,
                         uint32_t vocab) {
  const Hash128 theirs = TokenizerDigest(teacher_text), ours = TokenizerDigest(text);
  if (theirs != ours)
    return WithReason(InvalidArgument("the student's tokenizer is not the teacher's (digests ", ours.Hex(),
                                      " and ", theirs.Hex(), "): a token would not mean the same"),
                      "tokenizer_mismatch");
  if (teacher_vocab != vocab)
    return WithReason(
        InvalidArgument("the student has logits of ", vocab, " tokens, the teacher of ", teacher_vocab),
        "tokenizer_mismatch");
  return Status();
}

class Distillation {
 public:
  explicit Distillation(const DistillRequest& request) : request_(request), pool_(request.trainer.threads) {}

  StatusOr<DistillReport> Run() {
    RETURN_IF_ERROR(CheckRequest());
    ASSIGN_OR_RETURN(teacher_, OpenModel(request_.teacher));
    RETURN_IF_ERROR(CheckFamily(request_.teacher, teacher_.config));
    ASSIGN_OR_RETURN(const ModelWeights student, Student());
    RETURN_IF_ERROR(LoadRows(student.config));
    RETURN_IF_ERROR(OpenCache(student));
    Json job = Job();
    job["build"] = OwnBuildId();  // another one may compute other bits; not in the report
    ASSIGN_OR_RETURN(Journal journal, Journal::Open(request_.out, ToJsonText(job)));
    RETURN_IF_ERROR(Train(student, journal));
    RETURN_IF_ERROR(Write(journal));
    RETURN_IF_ERROR(journal.Remove());
    return std::move(report_);
  }

 private:
  const LossOptions& loss() const { return request_.trainer.loss; }

  // request_.out without slashes at its end.
  std::string Out() const {
    std::string out = request_.out;
    while (out.size() > 1 && out.ends_with('/')) out.pop_back();
    return out;
  }
  std::string ReportPath() const { return Out() + ".distill.json"; }

  Status CheckRequest() const;
  StatusOr<ModelWeights> Student();
  Status LoadRows(const ModelConfig& student);
  Status OpenCache(const ModelWeights& student);
  Status MakeCache(const TeacherCacheInfo& info, const ModelWeights& student);
  Json Job() const;
  Status Train(const ModelWeights& student, const Journal& journal);
  Status GoOn(const Journal& journal);
  Status Steps(const Journal& journal);
  Status Write(const Journal& journal);
  Status MeasureDraft(const std::string& draft);
  Status WriteReport(const Journal& journal);

  std::vector<size_t> SizesOf(std::span<const uint32_t> rows) const {
    std::vector<size_t> sizes;
    for (const uint32_t row : rows) sizes.push_back(rows_[row].tokens.size());
    return sizes;
  }

  const DistillRequest& request_;
  ThreadPool pool_;
  ModelFiles teacher_;
  Json origin_ = {};                             // what the student began as
  std::shared_ptr<const TextAssets> text_;       // the student's
  std::vector<TrainingRow> rows_;                // of the data, then those drawn of the validation file
  std::vector<uint32_t> trained_on_, held_out_;  // indices of rows
  std::unique_ptr<TeacherCache> cache_;          // null: the teacher is asked
  std::unique_ptr<Trainer> trainer_;             // while there is something to train or measure
  ModelWeights result_;
  DistillReport report_;
};

Status Distillation::CheckRequest() const {
  const TrainerOptions& trainer = request_.trainer;
  const struct {
    const char* flag;
    double value, least, most;
  } ranges[] = {{"--kl-weight", loss().kl_weight, 0, 1},
                {"--temperature", loss().temperature, 0.01, 100},
                {"--hidden-weight", loss().hidden_weight, 0, 1e6},
                {"--prompt-weight", loss().rows.prompt, 0, 1e6},
                {"--text-weight", loss().rows.text, 0, 1e6},
                {"--learning-rate", request_.learning_rate, 1e-9, 10},
                {"--warmup", request_.warmup, 0, 1},
                {"--weight-decay", trainer.weight_decay, 0, 10},
                {"--clip", trainer.clip, 1e-6, 1e6},
                {"--tokens", static_cast<double>(request_.tokens), 0, kMaxTokens},
                {"--batch-tokens", static_cast<double>(request_.batch_tokens), 1, UINT32_MAX},
                {"--memory-tokens", static_cast<double>(request_.memory_tokens), 1, UINT32_MAX},
                {"--validation-rows", static_cast<double>(request_.validation_rows), 1, UINT32_MAX},
                {"--checkpoint-steps", static_cast<double>(request_.checkpoint_steps), 1, UINT32_MAX}};
  for (const auto& range : ranges) {
    if (!(range.value >= range.least && range.value <= range.most))
      return InvalidArgument(range.flag, ": ", range.value, " is not between ", range.least, " and ",
                             range.most);
  }
  const int students =
      (request_.student.empty() ? 0 : 1) + (request_.config.empty() ? 0 : 1) + (request_.layers == 0 ? 0 : 1);
  if (students > 1 || (students == 0 && !request_.is_draft))
    return InvalidArgument(
        "the student is one of --student, --config and --layers, and only with --as draft none");
  if (request_.data.empty()) return InvalidArgument("--data: no file to train on");
  if (request_.dtype != DType::kF32 && request_.dtype != DType::kF16 && request_.dtype != DType::kBF16)
    return InvalidArgument("--dtype: ", Info(request_.dtype).name, " is none of f32, f16 and bf16");
  if (!request_.teacher_cache.empty() && loss().hidden_weight > 0)
    return InvalidArgument("--hidden-weight needs the teacher itself: --teacher-cache has no hidden states");
  std::error_code ignored;
  const bool is_begun = fs::exists(Out() + ".work", ignored);
  if (fs::exists(fs::symlink_status(Out(), ignored)))
    return InvalidArgument(Out(), ": is there already, and nothing is overwritten",
                           is_begun ? Concat("; ", Out(), ".work is left of a job and may be removed") : "");
  if (!is_begun && fs::exists(fs::symlink_status(ReportPath(), ignored)))
    return InvalidArgument(ReportPath(), ": is there already, and nothing is overwritten");
  return Status();
}

StatusOr<ModelWeights> Distillation::Student() {
  text_ = teacher_.text;
  if (!request_.student.empty()) {
    ASSIGN_OR_RETURN(const ModelFiles files, OpenModel(request_.student));
    RETURN_IF_ERROR(CheckFamily(request_.student, files.config));
    RETURN_IF_ERROR(
        CheckVocabularies(*teacher_.text, teacher_.config.vocab_size, *files.text, files.config.vocab_size));
    text_ = files.text;
    origin_ = {{"model", files.digest.Hex()}};
    return LoadWeights(files, pool_);
  }
  if (request_.layers > 0) {
    origin_ = {{"layers_of_teacher", request_.layers}};
    return TakeLayers(teacher_, request_.layers, pool_);
  }
  ModelConfig config = DraftConfig(teacher_.config);
  if (!request_.config.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(request_.config, kMaxConfigBytes));
    ASSIGN_OR_RETURN(config, ParseConfigJson(text, request_.config));
    RETURN_IF_ERROR(CheckFamily(request_.config, config));
  }
  RETURN_IF_ERROR(CheckVocabularies(*teacher_.text, teacher_.config.vocab_size, *text_, config.vocab_size));
  ModelWeights student = RandomWeights(config, request_.seed);
  ASSIGN_OR_RETURN(const Json shape, ParseJson(ConfigJsonText(student.config)));
  origin_ = {{"fresh", shape}};
  return student;
}

Status Distillation::LoadRows(const ModelConfig& student) {
  size_t most = std::min(student.context_length, teacher_.config.context_length);
  if (request_.max_tokens > 0) most = std::min<size_t>(most, request_.max_tokens);
  const auto load = [&](const std::vector<std::string>& paths) {
    return LoadTrainingRows(paths, *text_, student.vocab_size, most, loss().rows);
  };
  ASSIGN_OR_RETURN(TrainingRows data, load(request_.data));
  report_.cut = data.cut;
  report_.left_out = data.left_out;
  rows_ = std::move(data.rows);
  std::vector<bool> is_held_out(rows_.size(), false);
  const auto draw = [&](size_t of, size_t count) {
    std::vector<size_t> drawn = ShuffledIndices(of, request_.seed);
    drawn.resize(std::min(drawn.size(), count));
    std::ranges::sort(drawn);
    return drawn;
  };
  if (request_.validation.empty()) {
    const size_t count = std::min<size_t>(request_.validation_rows, rows_.size() / kHeldOutShare);
    if (count == 0)
      return InvalidArgument(
          "--data: ", rows_.size(),
          " rows are too few to hold a tenth of them out; name other rows with --validation");
    for (const size_t row : draw(rows_.size(), count)) is_held_out[row] = true;
  } else {
    ASSIGN_OR_RETURN(TrainingRows validation, load({request_.validation}));
    for (const size_t row : draw(validation.rows.size(), request_.validation_rows)) {
      rows_.push_back(std::move(validation.rows[row]));
      is_held_out.push_back(true);
    }
  }
  if (rows_.size() > UINT32_MAX)
    return InvalidArgument("--data: ", rows_.size(), " rows, limit ", UINT32_MAX);
  for (size_t row = 0; row < rows_.size(); ++row)
    (is_held_out[row] ? held_out_ : trained_on_).push_back(static_cast<uint32_t>(row));
  report_.rows = trained_on_.size();
  report_.held_out = held_out_.size();
  return Status();
}

Status Distillation::OpenCache(const ModelWeights& student) {
  if (request_.teacher_cache.empty()) return Status();
  const TeacherCacheInfo info = {.teacher_digest = teacher_.digest.Hex(),
                                 .text_digest = TokenizerDigest(*teacher_.text).Hex(),
                                 .rows_digest = RowsDigest(rows_).Hex(),
                                 .temperature = loss().temperature,
                                 .top_k = request_.top_k,
                                 .vocab_size = teacher_.config.vocab_size};
  if (info.top_k < 1 || info.top_k > info.vocab_size)
    return InvalidArgument("--top-k: ", info.top_k, " is not between 1 and the vocabulary, ",
                           info.vocab_size);
  auto cache = TeacherCache::Open(request_.teacher_cache, info, rows_);
  if (cache.status().code() == StatusCode::kNotFound) {
    RETURN_IF_ERROR(MakeCache(info, student));
    cache = TeacherCache::Open(request_.teacher_cache, info, rows_);
  }
  if (!cache.ok()) return cache.status();
  cache_ = *std::move(cache);
  return Status();
}

Status Distillation::MakeCache(const TeacherCacheInfo& info, const ModelWeights& student) {
  ASSIGN_OR_RETURN(const ModelWeights teacher, LoadWeights(teacher_, pool_));
  ASSIGN_OR_RETURN(const auto asker, Trainer::Create(student, &teacher, nullptr, rows_, request_.trainer));
  ASSIGN_OR_RETURN(auto writer, TeacherCacheWriter::Create(request_.teacher_cache, info, rows_));
  std::vector<uint32_t> all(rows_.size());
  std::iota(all.begin(), all.end(), 0u);
  uint64_t done = 0;
  for (const MicroBatch& batch : SplitRows(all, SizesOf(all), request_.memory_tokens)) {
    ASSIGN_OR_RETURN(const std::vector<TeacherRow> said, asker->Ask(batch, info.top_k));
    for (const TeacherRow& row : said) RETURN_IF_ERROR(writer.Append(row));
    done += batch.size();
    RETURN_IF_ERROR(request_.on_cache(done, rows_.size()));
  }
  return writer.Finish();
}

// What the output follows from.
Json Distillation::Job() const {
  const TrainerOptions& trainer = request_.trainer;
  Json json = {{"format", "terrace-distill-1"},
               {"version", kVersion},
               {"libtorch", TorchVersion()},
               {"kernels", std::string(CpuOps().name)},
               {"threads", trainer.threads},
               {"teacher", teacher_.digest.Hex()},
               {"student", origin_},
               {"text_digest", Digest(*text_).Hex()},
               {"rows", {{"digest", RowsDigest(rows_, trained_on_).Hex()}, {"count", trained_on_.size()}}},
               {"held_out", {{"digest", RowsDigest(rows_, held_out_).Hex()}, {"count", held_out_.size()}}},
               {"as", request_.is_draft ? "draft" : "model"},
               {"dtype", std::string(Info(request_.dtype).name)},
               {"seed", request_.seed},
               {"tokens", request_.tokens},
               {"batch_tokens", request_.batch_tokens},
               {"memory_tokens", request_.memory_tokens},
               {"learning_rate", request_.learning_rate},
               {"warmup", request_.warmup},
               {"weight_decay", trainer.weight_decay},
               {"clip", trainer.clip},
               {"kl_weight", loss().kl_weight},
               {"kl", loss().is_reverse ? "reverse" : "forward"},
               {"temperature", loss().temperature},
               {"hidden_weight", loss().hidden_weight},
               {"prompt_weight", loss().rows.prompt},
               {"text_weight", loss().rows.text},
               {"top_k", nullptr}};
  if (cache_ != nullptr) json["top_k"] = request_.top_k;
  return json;
}

Status Distillation::Train(const ModelWeights& student, const Journal& journal) {
  {
    ModelWeights teacher;  // which the trainer copies
    if (cache_ == nullptr) {
      ASSIGN_OR_RETURN(teacher, LoadWeights(teacher_, pool_));
    }
    ASSIGN_OR_RETURN(trainer_, Trainer::Create(student, cache_ == nullptr ? &teacher : nullptr, cache_.get(),
                                               rows_, request_.trainer));
  }
  for (const std::vector<float>& tensor : student.tensors) report_.parameters += tensor.size();
  std::vector<uint32_t> measured = held_out_;
  std::ranges::stable_sort(measured, {}, [&](uint32_t row) { return rows_[row].tokens.size(); });
  const std::vector<MicroBatch> batches = SplitRows(measured, SizesOf(measured), request_.memory_tokens);

  if (const auto part = journal.Find(kBefore); part.ok()) {
    ASSIGN_OR_RETURN(report_.before, ParseMeasurement(AsText(part->bytes())));
  } else {
    ASSIGN_OR_RETURN(report_.before, trainer_->Measure(batches, request_.is_cancelled));
    const std::string text = ToJsonText(ToJson(report_.before));
    RETURN_IF_ERROR(journal.Save(kBefore, std::as_bytes(std::span(text))));
  }
  RETURN_IF_ERROR(GoOn(journal));
  RETURN_IF_ERROR(Steps(journal));
  result_ = trainer_->weights();
  RETURN_IF_ERROR(RoundWeights(request_.dtype, result_));
  trainer_->SetWeights(result_);
  ASSIGN_OR_RETURN(report_.after, trainer_->Measure(batches, request_.is_cancelled));
  trainer_.reset();  // its memory
  return Status();
}

Status Distillation::GoOn(const Journal& journal) {
  const auto part = journal.Find(kCheckpoint);
  if (part.status().code() == StatusCode::kNotFound) return Status();
  RETURN_IF_ERROR(part.status());  // one that cannot be read now is not begun anew
  ASSIGN_OR_RETURN(const TrainerState state, ParseState(part->bytes()));
  trainer_->Restore(state);
  report_.resumed_from = state.steps;
  return Status();
}

Status Distillation::Steps(const Journal& journal) {
  const std::vector<TrainingStep> steps = PlanTraining(trained_on_, SizesOf(trained_on_),
                                                       {.tokens = request_.tokens,
                                                        .batch_tokens = request_.batch_tokens,
                                                        .memory_tokens = request_.memory_tokens,
                                                        .seed = request_.seed});
  StepReport told = {.steps = steps.size()};
  for (const TrainingStep& step : steps) told.all_tokens += step.tokens;
  const auto warmup = static_cast<uint64_t>(std::ceil(request_.warmup * static_cast<double>(steps.size())));
  for (const TrainingStep& step : steps) {
    const uint64_t index = told.step++;
    told.tokens += step.tokens;
    if (index < report_.resumed_from) continue;
    told.learning_rate = LearningRate(request_.learning_rate, index, steps.size(), warmup);
    const auto losses = trainer_->Step(step, told.learning_rate);
    if (!losses.ok()) return Annotate(losses.status(), Concat("step ", told.step));
    told.losses = *losses;
    const Status status = request_.on_step(told);
    const bool is_due = told.step % request_.checkpoint_steps == 0 || told.step == steps.size();
    if (status.code() == StatusCode::kCancelled || (status.ok() && is_due))
      RETURN_IF_ERROR(journal.Save(kCheckpoint, PackState(trainer_->Save())));
    RETURN_IF_ERROR(status);
  }
  report_.steps = told.step;
  report_.tokens = told.tokens;
  return Status();
}

Status Distillation::Write(const Journal& journal) {
  const std::string temporary = journal.folder() + "/model";
  std::error_code ignored;
  fs::remove_all(temporary, ignored);  // of a process that was killed
  return WriteWeights(request_.out, result_, *text_, request_.dtype, temporary,
                      [&](const Hash128& digest) {
                        report_.digest = digest;
                        if (request_.is_draft) RETURN_IF_ERROR(MeasureDraft(temporary));
                        return WriteReport(journal);
                      })
      .status();
}

Status Distillation::MeasureDraft(const std::string& draft) {
  const auto threads = static_cast<uint32_t>(request_.trainer.threads);
  ASSIGN_OR_RETURN(const auto model, ScoringModel::Open({.model = request_.teacher,
                                                         .threads = threads,
                                                         .is_cancelled = request_.is_cancelled}));
  ASSIGN_OR_RETURN(
      const auto drafter,
      ScoringModel::Open({.model = draft, .threads = threads, .is_cancelled = request_.is_cancelled}));
  std::vector<std::vector<TokenId>> prompts;
  const size_t count = std::min(held_out_.size(), kAcceptanceRows);
  for (size_t i = 0; i < count; ++i) {  // evenly from all files
    const TrainingRow& row = rows_[held_out_[i * held_out_.size() / count]];
    const size_t size = row.is_chat ? row.answer : std::max<size_t>(1, row.tokens.size() / kPromptShare);
    prompts.emplace_back(row.tokens.begin(), row.tokens.begin() + static_cast<std::ptrdiff_t>(size));
  }
  ASSIGN_OR_RETURN(report_.acceptance, MeasureAcceptance(*model, *drafter, prompts, request_.is_cancelled));
  return Status();
}

Status Distillation::WriteReport(const Journal& journal) {
  Json json = Job();
  json["parameters"] = report_.parameters;
  json["trained"] = {{"steps", report_.steps}, {"tokens", report_.tokens}};
  json["validation"] = {{"before", ToJson(report_.before)}, {"after", ToJson(report_.after)}};
  if (const auto& acceptance = report_.acceptance; acceptance)
    json["acceptance"] = {{"answers", acceptance->answers},
                          {"tokens", acceptance->tokens},
                          {"rate", acceptance->rate()},
                          {"draft_tokens", kDraftTokens},
                          {"tokens_per_pass", acceptance->tokens_per_pass()}};
  json["output"] = {{"digest", report_.digest.Hex()}};
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  report_.path = ReportPath();
  return ReplaceFile(report_.path, journal.folder() + "/report", {std::as_bytes(std::span(text))});
}

}  // namespace

StatusOr<DistillReport> Distill(const DistillRequest& request) { return Distillation(request).Run(); }

}  // namespace terrace
