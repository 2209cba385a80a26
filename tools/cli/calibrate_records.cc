#include "tools/cli/calibrate_records.h"

#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "base/http_server.h"
#include "base/json.h"
#include "tools/cli/ask_rows.h"
#include "tools/cli/progress_bar.h"
#include "tools/cli/record_journal.h"
#include "tools/cli/router_client.h"

namespace terrace {
namespace {

constexpr double kStatusSeconds = 5;
constexpr uint32_t kAlternatives = 20;  // the most that a request may ask for

// A tier, opened.
struct OpenedTier {
  JournaledTier journaled = {};
  std::string model = {};  // as requests name it
  std::unique_ptr<Answerer> answerer = {};
};

StatusOr<uint64_t> ParametersOf(Answerer& answerer, const std::string& model) {
  ASSIGN_OR_RETURN(const v1::ListModelsResponse models, answerer.ListModels());
  for (const v1::Model& each : models.models()) {
    if (model.empty() || each.id() == model) return each.parameters();
  }
  return NotFound("no tier ", model, " is served");
}

StatusOr<OpenedTier> OpenTier(const std::string& text, const AskTiersOptions& options,
                              const CommandContext& context) {
  OpenedTier tier;
  RecordedTier& described = tier.journaled.tier;
  ModelTarget target = options.target;
  target.max_sequences = options.concurrency;
  const size_t equals = text.find('=');
  if (equals != std::string::npos) {
    target.router.clear();
    target.model = text.substr(equals + 1);
    described.name = text.substr(0, equals);
  } else {
    if (target.router.empty()) target.router = kDefaultRouter;
    target.model = text;
    StatusOr<RecordedTier> served = AskServedTier(options.router_ops, text);
    if (served.status().code() == StatusCode::kNotFound)
      return NotFound(Message(served.status()), " (a model on disk is named NAME=MODEL)");
    ASSIGN_OR_RETURN(described, std::move(served));
  }
  tier.model = target.served_name();
  ASSIGN_OR_RETURN(tier.answerer, OpenTarget(target, context));
  if (const auto facts = tier.answerer->Facts()) {
    described.model_digest = facts->model_digest;
    described.text_digest = facts->text_digest;
    tier.journaled.runtime = facts->runtime();
    tier.journaled.build = facts->build;
  }
  ASSIGN_OR_RETURN(described.parameters, ParametersOf(*tier.answerer, tier.model));
  return tier;
}

// At least: each of the alternatives that were not sent is at most as likely as the last that was.
double EntropyOf(const v1::OutputToken& token) {
  double entropy = 0, rest = 1;
  for (const v1::TokenLogprob& each : token.top()) {
    const double probability = std::exp(double{each.logprob()});
    if (probability > 0) entropy -= probability * each.logprob();
    rest -= probability;
  }
  return rest > 0 ? entropy - rest * token.top(token.top_size() - 1).logprob() : entropy;
}

PromptTraits TraitsOf(const v1::ChatMessages& chat) {
  PromptTraits traits;
  for (const v1::ChatMessage& message : chat.messages()) traits.Add(message.content());
  return traits;
}

std::vector<int32_t> IdsOf(const Answer& answer) {
  std::vector<int32_t> ids;
  for (const v1::OutputToken& token : answer.tokens) ids.push_back(token.id());
  return ids;
}

using DraftTokens = std::vector<std::vector<int32_t>>;  // [rows]

StatusOr<JournaledAnswer> JournaledAnswerOf(const TaskRow& row, const Answer& answer,
                                            const std::vector<int32_t>& draft) {
  JournaledAnswer out{.ids = IdsOf(answer)};
  out.answer = {.is_right = IsRight(row, answer.text),
                .prompt_tokens = answer.finished.usage().prompt_tokens(),
                .draft_agreement = AgreementWith(draft, out.ids)};
  ASSIGN_OR_RETURN(out.answer.signals, SignalsOf(answer));
  return out;
}

// Adds the tier's answers to `records`: those that the journal, if there is one, has, and of other rows those
// that it gives. `drafts`: of the tier before, empty where they are none of this tier's tokens; becomes its
// own.
Status AskTier(const OpenedTier& tier, const std::vector<TaskRow>& rows, const AskTiersOptions& options,
               const CommandContext& context, RecordJournal* journal, Records& records, DraftTokens& drafts) {
  const auto take = [&](size_t row, JournaledAnswer answer) {
    records.rows[row].answers.push_back(answer.answer);
    drafts[row] = std::move(answer.ids);
  };
  RecordJournal::Answers known;
  if (journal != nullptr) {
    ASSIGN_OR_RETURN(const RecordJournal::Answers* const found, journal->Begin(tier.journaled));
    known = *found;
  }
  std::vector<TaskRow> asked;
  std::vector<size_t> places;  // [asked]: among `rows`
  for (size_t row = 0; row < rows.size(); ++row) {
    if (const auto found = known.find(row); found != known.end()) {
      take(row, found->second);
    } else {
      asked.push_back(rows[row]);
      places.push_back(row);
    }
  }
  ProgressBar bar(context, tier.journaled.tier.name);
  size_t done = known.size();
  const auto on_answer = [&](size_t index, const Answer& answer) -> Status {
    const size_t row = places[index];
    ASSIGN_OR_RETURN(JournaledAnswer next, JournaledAnswerOf(rows[row], answer, drafts[row]));
    if (journal != nullptr) RETURN_IF_ERROR(journal->Add(row, next));
    take(row, std::move(next));
    bar.Show(++done, rows.size());
    return {};
  };
  return AskRows(*tier.answerer, asked,
                 {.model = tier.model,
                  .concurrency = options.concurrency,
                  .max_tokens = options.max_tokens,
                  .top_logprobs = kAlternatives},
                 context.shutdown, on_answer);
}

}  // namespace

StatusOr<Records> AskTiers(const std::vector<TaskRow>& rows, const AskTiersOptions& options,
                           const CommandContext& context) {
  const std::vector<TaskRow> scored = ScoredRows(rows);
  Records records;
  for (const TaskRow& row : scored)
    records.rows.push_back({.id = row.id, .task = row.task, .prompt = TraitsOf(row.chat)});
  std::optional<RecordJournal> journal;
  if (!options.journal.empty()) {
    const RecordJournalHead head{.scored_rows_digest = TaskSetDigest(scored).Hex(),
                                 .max_tokens = options.max_tokens};
    ASSIGN_OR_RETURN(journal, RecordJournal::Open(options.journal, head, scored.size()));
  }
  DraftTokens drafts(scored.size());
  for (const std::string& text : options.tiers) {
    StatusOr<OpenedTier> tier = OpenTier(text, options, context);
    if (!tier.ok()) return Annotate(tier.status(), text);
    const bool speaks_alike =
        !records.tiers.empty() && records.tiers.back().text_digest == tier->journaled.tier.text_digest;
    if (!speaks_alike) drafts.assign(scored.size(), {});
    const Status asked =
        AskTier(*tier, scored, options, context, journal ? &*journal : nullptr, records, drafts);
    if (!asked.ok()) return Annotate(asked, text);
    records.tiers.push_back(std::move(tier->journaled.tier));
  }
  return records;
}

StatusOr<AnswerSignals> SignalsOf(const Answer& answer) {
  SignalMeter meter;
  for (const v1::OutputToken& token : answer.tokens) {
    if (token.top_size() < 2)
      return FailedPrecondition("a token has ", token.top_size(), " alternatives, 2 are needed");
    meter.Add(token.logprob(), double{token.top(0).logprob()} - token.top(1).logprob(), EntropyOf(token));
  }
  if (answer.tokens.empty()) return FailedPrecondition("the answer has no tokens");
  return meter.signals();
}

StatusOr<RecordedTier> DescribeServedTier(const Json& statusz, const std::string& name) {
  try {
    for (const Json& tier : statusz.at("tiers")) {
      if (tier.at("name") != name) continue;
      for (const Json& replica : tier.at("replicas")) {
        if (replica.at("state") != "ready") continue;
        return RecordedTier{.name = name,
                            .model_digest = replica.at("model_digest").get<std::string>(),
                            .text_digest = replica.at("text_digest").get<std::string>()};
      }
      return FailedPrecondition("no replica of tier ", name, " is ready");
    }
    return NotFound("the router has no tier ", name);
  } catch (const Json::exception& error) {
    return DataLoss("unexpected /statusz: ", error.what());
  }
}

StatusOr<RecordedTier> AskServedTier(const std::string& router_ops, const std::string& name) {
  ASSIGN_OR_RETURN(const std::string body, HttpGet(router_ops + "/statusz", kStatusSeconds));
  ASSIGN_OR_RETURN(const Json statusz, ParseJson(body));
  return DescribeServedTier(statusz, name);
}

}  // namespace terrace
