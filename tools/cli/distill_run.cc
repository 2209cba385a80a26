#include "tools/cli/distill_run.h"

#include <string>
#include <vector>

#include "base/clock.h"
#include "base/machine.h"
#include "tools/cli/format.h"
#include "tools/cli/progress_bar.h"
#include "tools/distill/distill.h"

namespace terrace {
namespace {

constexpr double kSecondsBetweenLines = 5;

// A line now and then, with the means since the line before, and one at the end.
class ProgressLines {
 public:
  explicit ProgressLines(std::ostream& out) : out_(out) {}

  void Add(const StepReport& report) {
    const MonoTime now = RealClock().Now();
    if (!is_begun_) {  // what was done before took other time
      is_begun_ = true;
      start_ = last_ = now;
      start_tokens_ = report.tokens;
    }
    ++steps_;
    loss_ += report.losses.loss;
    kl_ += report.losses.kl;
    labels_ += report.losses.labels;
    if (report.step < report.steps && Seconds(now - last_) < kSecondsBetweenLines) return;
    const auto mean = [&](double sum) { return FormatFixed(sum / static_cast<double>(steps_), 4); };
    out_ << "step " << report.step << "/" << report.steps << "  loss " << mean(loss_) << "  kl " << mean(kl_)
         << "  labels " << mean(labels_) << Speed(report, Seconds(now - start_)) << "\n"
         << std::flush;
    last_ = now;
    steps_ = 0;
    loss_ = kl_ = labels_ = 0;
  }

 private:
  std::string Speed(const StepReport& report, double seconds) const {
    if (report.tokens == start_tokens_ || seconds <= 0) return "";
    const double rate = static_cast<double>(report.tokens - start_tokens_) / seconds;
    const double left = static_cast<double>(report.all_tokens - report.tokens) / rate;
    return Concat("  ", FormatCount(static_cast<uint64_t>(rate)), " tokens/s  ",
                  report.step == report.steps ? "done" : Concat(FormatSeconds(left), " left"));
  }

  std::ostream& out_;
  bool is_begun_ = false;
  MonoTime start_, last_;      // of the first step here; of the last line
  uint64_t start_tokens_ = 0;  // that were done at start_
  uint64_t steps_ = 0;         // since the last line, like the sums
  double loss_ = 0, kl_ = 0, labels_ = 0;
};

std::string ResultTable(const DistillReport& report) {
  const auto row = [](const char* name, double before, double after) {
    return std::vector<std::string>{name, FormatFixed(before, 4), FormatFixed(after, 4)};
  };
  const Measurement &before = report.before, &after = report.after;
  return FormatTable({{"held-out rows", "before", "after"},
                      row("loss", before.loss, after.loss),
                      row("labels, nats a token", before.labels, after.labels),
                      row("KL, nats a token", before.kl, after.kl),
                      row("agreement with the teacher", before.agreement, after.agreement)},
                     1);
}

void Tell(const DistillReport& report, const std::string& out, double seconds,
          const CommandContext& context) {
  context.out << ResultTable(report);
  if (const auto& acceptance = report.acceptance; acceptance)
    context.out << "as a draft: " << FormatFixed(acceptance->rate(), 3) << " of "
                << FormatCount(acceptance->tokens) << " tokens accepted, "
                << FormatFixed(acceptance->tokens_per_pass(), 2) << " tokens a pass with " << kDraftTokens
                << " guesses\n";
  context.out << out << ": " << FormatCount(report.parameters) << " parameters, "
              << FormatCount(report.tokens) << " tokens in " << FormatCount(report.steps) << " steps, "
              << FormatSeconds(seconds) << ", digest " << report.digest.Hex() << "\nreport: " << report.path
              << "\n";
}

}  // namespace

Status TrainStudent(const DistillOptions& options, const CommandContext& context) {
  const MonoTime start = RealClock().Now();
  DistillRequest request = options.request;
  request.trainer.threads = options.threads > 0 ? options.threads : UsableCores();
  ProgressLines lines(context.out);
  const auto unless_interrupted = [&] {
    return context.shutdown.IsPending() ? Cancelled("interrupted") : Status();
  };
  ProgressBar bar(context, "asking the teacher");
  bool makes_cache = false;
  request.on_cache = [&](uint64_t done, uint64_t total) {
    makes_cache = done < total;
    bar.Show(done, total);
    return unless_interrupted();
  };
  request.is_cancelled = [&context] { return context.shutdown.IsPending(); };
  request.on_step = [&](const StepReport& report) {
    lines.Add(report);
    return unless_interrupted();
  };
  const StatusOr<DistillReport> report = Distill(request);
  if (report.status().code() == StatusCode::kCancelled) {
    return Cancelled(makes_cache
                         ? "interrupted; the same command asks the teacher anew, from the first row on"
                         : "interrupted; the same command goes on where this one was");
  }
  if (!report.ok()) return report.status();
  Tell(*report, request.out, Seconds(RealClock().Now() - start), context);
  return Status();
}

}  // namespace terrace
