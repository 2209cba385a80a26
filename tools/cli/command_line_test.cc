#include "tools/cli/command_line.h"

#include "base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/cli/test_context.h"

namespace terrace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <typename Options>
Options Parse(const std::vector<std::string>& arguments) {
  const CommandLine line = ParseCommandLine(arguments);
  EXPECT_TRUE(line.options.ok()) << line.options.status();
  return std::get<Options>(*line.options);
}

TEST(CommandLine, GenerateReadsEveryFlag) {
  const auto options = Parse<GenerateOptions>({"generate",
                                               "--router",
                                               "h:1",
                                               "--model",
                                               "auto",
                                               "--prompt-tokens",
                                               "0,2,16",
                                               "--max-tokens",
                                               "7",
                                               "--temperature",
                                               "0.5",
                                               "--top-k",
                                               "3",
                                               "--top-p",
                                               "0.9",
                                               "--min-p",
                                               "0.1",
                                               "--seed",
                                               "18446744073709551615",
                                               "--stop",
                                               "a",
                                               "--stop",
                                               "b",
                                               "--ignore-eos",
                                               "--logprobs",
                                               "2",
                                               "--prompt-logprobs",
                                               "--echo",
                                               "--n",
                                               "3",
                                               "--best-of",
                                               "5",
                                               "--json"});
  EXPECT_EQ(options.target.router, "h:1");
  EXPECT_FALSE(options.target.is_in_process());
  EXPECT_EQ(options.target.served_name(), "auto");
  EXPECT_THAT(options.prompt_tokens, ElementsAre(0, 2, 16));
  EXPECT_EQ(options.request.max_tokens, 7u);
  EXPECT_EQ(options.request.temperature, 0.5f);
  EXPECT_EQ(options.request.top_k, 3);
  EXPECT_EQ(options.request.top_p, 0.9f);
  EXPECT_EQ(options.request.min_p, 0.1f);
  EXPECT_EQ(options.request.seed, 18446744073709551615u);
  EXPECT_THAT(options.request.stop, ElementsAre("a", "b"));
  EXPECT_TRUE(options.request.ignore_eos);
  EXPECT_EQ(options.logprobs, 2u);
  EXPECT_TRUE(options.prompt_logprobs && options.echo);
  EXPECT_EQ(options.answers, 3u);
  EXPECT_EQ(options.best_of, 5u);
  EXPECT_TRUE(options.json);
}

TEST(CommandLine, AModelWithoutARouterIsAPath) {
  const auto in_process = Parse<GenerateOptions>({"generate", "--model", "m", "--prompt", ""});
  EXPECT_TRUE(in_process.target.is_in_process());
  EXPECT_EQ(in_process.prompt, "");
  const auto default_router = Parse<GenerateOptions>({"generate", "--prompt", "x"});
  EXPECT_FALSE(default_router.target.is_in_process());
  EXPECT_EQ(default_router.request.temperature, 0);
  ModelTarget absent;
  absent.model = "/nowhere/auto";
  const TestContext test;
  EXPECT_EQ(OpenTarget(absent, test.context).status().code(), StatusCode::kNotFound);
  absent.access.tls.ca = "a";
  EXPECT_EQ(OpenTarget(absent, test.context).status().code(), StatusCode::kInvalidArgument)
      << "nothing to secure";
}

TEST(CommandLine, CommandsThatConnectTakeTlsFiles) {
  const auto chat = Parse<ChatOptions>(
      {"chat", "--tls-ca", "a", "--tls-cert", "c", "--tls-key", "k", "--tls-name", "router.internal"});
  EXPECT_EQ(chat.access.tls.ca, "a");
  EXPECT_EQ(chat.access.tls.certificate, "c");
  EXPECT_EQ(chat.access.tls.key, "k");
  EXPECT_EQ(chat.access.server_name, "router.internal");
  EXPECT_EQ(Parse<GenerateOptions>({"generate", "--prompt", "x", "--tls-ca", "a"}).target.access.tls.ca, "a");
  EXPECT_EQ(Parse<EvaluateOptions>({"evaluate", "--tls-ca", "a"}).target.access.tls.ca, "a");
  EXPECT_EQ(Parse<BenchOptions>({"bench", "--worker", "w:1", "--tls-ca", "a"}).access.tls.ca, "a");
  EXPECT_FALSE(ParseCommandLine({"chat", "--tls-name", "x"}).options.ok()) << "without authorities";
  EXPECT_FALSE(ParseCommandLine({"chat", "--tls-ca", "a", "--tls-cert", "c"}).options.ok())
      << "without its key";
}

TEST(CommandLine, EveryCommandParses) {
  EXPECT_EQ(Parse<UpOptions>({"up", "-f", "c.yaml"}).launch.file, "c.yaml");
  EXPECT_EQ(Parse<UpOptions>({"up", "--model", "m"}).launch.model, "m");
  EXPECT_TRUE(Parse<DemoOptions>({"demo", "--once"}).once);
  EXPECT_EQ(Parse<ChatOptions>({"chat", "--system", "s"}).router, kDefaultRouter);
  EXPECT_EQ(Parse<StatusOptions>({"status"}).refresh, StatusOptions::Refresh::kOnTerminal);
  EXPECT_EQ(Parse<StatusOptions>({"status", "--once"}).refresh, StatusOptions::Refresh::kNever);
  EXPECT_EQ(Parse<StatusOptions>({"status", "--watch"}).refresh, StatusOptions::Refresh::kAlways);
  EXPECT_TRUE(Parse<InspectOptions>({"inspect", "m", "--tensors"}).all_tensors);
  EXPECT_EQ(Parse<DigestOptions>({"digest", "--model", "m"}).model, "m");
  EXPECT_FALSE(Parse<DigestOptions>({"digest", "--model", "m"}).check);
  EXPECT_TRUE(Parse<DigestOptions>({"digest", "--model", "m", "--check"}).check);
  EXPECT_FALSE(ParseCommandLine({"digest"}).options.ok()) << "of which model";
  const auto fit =
      Parse<InspectOptions>({"inspect", "m", "--fit", "8x80GB", "--batch", "64", "--context", "999",
                             "--prompt-tokens", "7", "--kv-dtype", "int8", "--weights", "q4_k"})
          .fit;
  EXPECT_EQ(fit.devices, "8x80GB");
  EXPECT_EQ(fit.weights, "q4_k");
  EXPECT_EQ(fit.fit.batch, 64u);
  EXPECT_EQ(fit.fit.context, 999u);
  EXPECT_EQ(fit.fit.prefill_tokens, 7u);
  EXPECT_EQ(fit.fit.kv_dtype, "int8");
  const auto evaluate =
      Parse<EvaluateOptions>({"evaluate", "--model", "m", "--tasks", "a", "b", "--limit", "3"});
  EXPECT_THAT(evaluate.tasks, ElementsAre("a", "b"));
  EXPECT_EQ(evaluate.concurrency, 16u);
  const auto perplexity = Parse<EvaluateOptions>({"evaluate", "--model", "m", "--perplexity", "a", "b",
                                                  "--window", "64", "--stride", "8", "--limit", "3"});
  EXPECT_THAT(perplexity.perplexity, ElementsAre("a", "b"));
  EXPECT_EQ(perplexity.window, 64u);
  EXPECT_EQ(perplexity.stride, 8u);
}

TEST(CommandLine, SynthesizeReadsEveryFlag) {
  const auto options = Parse<SynthesizeOptions>(
      {"synthesize",  "--out",   "m",         "--config", "c",          "--layers",  "1",
       "--hidden",    "2",       "--heads",   "3",        "--kv-heads", "4",         "--head-dim",
       "5",           "--ffn",   "6",         "--vocab",  "7",          "--context", "8",
       "--untied",    "--dtype", "q8_0",      "--seed",   "9",          "--format",  "gguf",
       "--tokenizer", "t",       "--threads", "2"});
  EXPECT_EQ(options.out, "m");
  EXPECT_EQ(options.config, "c");
  const ShapeChanges& changes = options.changes;
  const auto sizes = {changes.layers,   changes.hidden, changes.heads, changes.kv_heads,
                      changes.head_dim, changes.ffn,    changes.vocab, changes.context};
  EXPECT_THAT(sizes, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
  EXPECT_EQ(changes.tied, false);
  EXPECT_EQ(options.dtype, DType::kQ8_0);
  EXPECT_EQ(options.seed, 9u);
  EXPECT_EQ(options.format, "gguf");
  EXPECT_EQ(options.tokenizer, "t");
  EXPECT_EQ(options.threads, 2u);
  const auto plain = Parse<SynthesizeOptions>({"synthesize", "--out", "m", "--shape", "8b"});
  EXPECT_EQ(plain.shape, "8b");
  EXPECT_EQ(plain.dtype, DType::kF16);
  EXPECT_EQ(plain.changes.tied, std::nullopt);
  EXPECT_EQ(plain.changes.vocab, std::nullopt);
}

TEST(CommandLine, QuantizeReadsEveryFlag) {
  const auto options = Parse<QuantizeOptions>(
      {"quantize", "--model",       "m",         "--to",      "int4-g64", "--out",  "o", "--method",
       "awq",      "--calibration", "c",         "--samples", "7",        "--seed", "9", "--damping",
       "0.1",      "--act-order",   "--imatrix", "--threads", "2"});
  EXPECT_EQ(options.model, "m");
  EXPECT_EQ(options.to, "int4-g64");
  EXPECT_EQ(options.out, "o");
  EXPECT_EQ(options.method, "awq");
  EXPECT_EQ(options.calibration.path, "c");
  EXPECT_EQ(options.calibration.samples, 7u);
  EXPECT_EQ(options.calibration.seed, 9u);
  EXPECT_EQ(options.damping, 0.1);
  EXPECT_TRUE(options.act_order && options.imatrix);
  EXPECT_EQ(options.threads, 2u);
  const auto plain = Parse<QuantizeOptions>({"quantize", "--model", "m", "--to", "q4_k", "--out", "o"});
  EXPECT_EQ(plain.method, "") << "the format's";
  EXPECT_FALSE(plain.budget.is_set());
  const auto fit = Parse<QuantizeOptions>({"quantize", "--model", "m", "--to", "q4_k", "--out", "o", "--fit",
                                           "1.5GiB", "--sensitivity-tokens", "500"});
  EXPECT_EQ(fit.budget.bytes, uint64_t{3} << 29);
  EXPECT_EQ(fit.budget.tokens, 500u);
  const auto faster =
      Parse<QuantizeOptions>({"quantize", "--model", "m", "--to", "q4_k", "--out", "o", "--faster", "25%"});
  EXPECT_EQ(faster.budget.faster, 0.25);
  EXPECT_EQ(faster.budget.bytes, 0u);
}

TEST(CommandLine, PruneReadsEveryFlag) {
  const auto zeros = Parse<PruneOptions>({"prune", "--model", "m", "--out", "o", "--pattern", "2:4",
                                          "--method", "magnitude", "--calibration", "c", "--samples", "7",
                                          "--seed", "9", "--damping", "0.1", "--threads", "2"});
  EXPECT_EQ(zeros.model, "m");
  EXPECT_EQ(zeros.out, "o");
  EXPECT_EQ(zeros.pattern, "2:4");
  EXPECT_EQ(zeros.method, "magnitude");
  EXPECT_EQ(zeros.calibration.path, "c");
  EXPECT_EQ(zeros.calibration.samples, 7u);
  EXPECT_EQ(zeros.calibration.seed, 9u);
  EXPECT_EQ(zeros.damping, 0.1);
  EXPECT_EQ(zeros.threads, 2u);
  EXPECT_TRUE(zeros.cut.is_empty());
  EXPECT_EQ(Parse<PruneOptions>({"prune", "--model", "m", "--out", "o", "--sparsity", "0.5"}).sparsity, 0.5);

  const auto cut =
      Parse<PruneOptions>({"prune", "--model", "m", "--out", "o", "--remove-ffn", "0.2", "--ffn-multiple",
                           "32", "--remove-kv-heads", "1", "--remove-layers", "2", "--no-repair"});
  EXPECT_EQ(cut.cut.ffn_share, 0.2);
  EXPECT_EQ(cut.cut.multiple, 32u);
  EXPECT_EQ(cut.cut.kv_heads, 1u);
  EXPECT_EQ(cut.cut.layers, 2u);
  EXPECT_TRUE(cut.no_repair);
}

TEST(CommandLine, ReportReadsEveryFlag) {
  const auto options = Parse<ReportOptions>({"report",
                                             "--model",
                                             "m",
                                             "--price-per-hour",
                                             "0.5",
                                             "--techniques",
                                             "q8_0,kv-int8",
                                             "--variant",
                                             "a=b",
                                             "--variant",
                                             "c=d,kv=int8",
                                             "--cascade",
                                             "a+c@-0.1,0",
                                             "--batches",
                                             "1,8",
                                             "--work",
                                             "w",
                                             "--speed-tokens",
                                             "32",
                                             "--tasks",
                                             "t",
                                             "--limit",
                                             "3",
                                             "--max-tokens",
                                             "7",
                                             "--no-divergence",
                                             "--kv-dtype",
                                             "f16",
                                             "--samples",
                                             "5",
                                             "--calibration",
                                             "x",
                                             "--mixed-fit",
                                             "1.5MiB",
                                             "--speed-seconds",
                                             "0.5"});
  EXPECT_EQ(options.evaluate.target.model, "m");
  EXPECT_EQ(options.evaluate.target.kv_dtype, "f16");
  EXPECT_EQ(options.usd_per_hour, 0.5);
  EXPECT_THAT(options.techniques, ElementsAre("q8_0", "kv-int8"));
  ASSERT_EQ(options.variants.size(), 2u);
  EXPECT_EQ(options.variants[1].kv_dtype, "int8");
  ASSERT_EQ(options.cascades.size(), 1u);
  EXPECT_THAT(options.cascades[0].thresholds, ElementsAre(-0.1, 0));
  EXPECT_THAT(options.batches, ElementsAre(1, 8));
  EXPECT_EQ(options.speed_tokens, 32u);
  EXPECT_EQ(options.speed_seconds, 0.5);
  EXPECT_EQ(options.work, "w");
  EXPECT_THAT(options.evaluate.tasks, ElementsAre("t"));
  EXPECT_EQ(options.evaluate.limit, 3u);
  EXPECT_EQ(options.evaluate.max_tokens, 7u);
  EXPECT_FALSE(options.evaluate.divergence);
  EXPECT_EQ(options.calibration.path, "x");
  EXPECT_EQ(options.calibration.samples, 5u);
  EXPECT_EQ(options.mixed_bytes, 3u << 19);
  EXPECT_THAT(Parse<ReportOptions>({"report", "--model", "m", "--price-per-hour", "1", "--techniques", "all"})
                  .techniques,
              ElementsAre("all"));
  const auto history = Parse<ReportOptions>({"report", "--history", "a", "b", "--accuracy", "0.8,0.9"});
  EXPECT_THAT(history.history, ElementsAre("a", "b"));
  EXPECT_THAT(history.levels, ElementsAre(0.8, 0.9));
}

TEST(CommandLine, PlanReadsEveryFlag) {
  const auto options = Parse<PlanOptions>({"plan",
                                           "--model",
                                           "m",
                                           "--price-per-hour",
                                           "0.5",
                                           "--memory",
                                           "8GiB",
                                           "--ttft-p99",
                                           "300ms",
                                           "--itl",
                                           "50ms",
                                           "--throughput",
                                           "100",
                                           "--min-quality",
                                           "0.8",
                                           "--price",
                                           "2.5",
                                           "--prompt-tokens",
                                           "uniform:10-20",
                                           "--output-tokens",
                                           "30",
                                           "--shared-prefix-tokens",
                                           "5",
                                           "--rate",
                                           "2.5",
                                           "--requests",
                                           "50",
                                           "--seed",
                                           "7",
                                           "--techniques",
                                           "q8_0",
                                           "--mixed-fit",
                                           "2MiB",
                                           "--variant",
                                           "a=b",
                                           "--report",
                                           "r",
                                           "--acceptance",
                                           "0.6",
                                           "--max-sequences",
                                           "8",
                                           "--max-machines",
                                           "3",
                                           "--repeats",
                                           "2",
                                           "--threads",
                                           "1",
                                           "--kv-dtype",
                                           "f16",
                                           "--out",
                                           "o",
                                           "--verify"});
  EXPECT_EQ(options.target.model, "m");
  EXPECT_EQ(options.target.threads, 1u);
  EXPECT_EQ(options.target.kv_dtype, "f16");
  EXPECT_EQ(options.usd_per_hour, 0.5);
  EXPECT_EQ(options.constraints.memory_bytes, uint64_t{8} << 30);
  EXPECT_EQ(options.constraints.first_token_p99_seconds, 0.3);
  EXPECT_EQ(options.constraints.inter_token_p99_seconds, 0.05);
  EXPECT_EQ(options.constraints.output_tokens_per_second, 100);
  EXPECT_EQ(options.constraints.min_accuracy, 0.8);
  EXPECT_EQ(options.constraints.max_usd_per_million_tokens, 2.5);
  EXPECT_EQ(options.traffic.prompt_tokens.text(), "uniform:10-20");
  EXPECT_EQ(options.traffic.output_tokens.text(), "30");
  EXPECT_EQ(options.traffic.shared_prefix_tokens, 5u);
  EXPECT_EQ(std::get<OpenLoop>(options.traffic.load).rate, 2.5);
  EXPECT_EQ(options.traffic.requests, 50u);
  EXPECT_EQ(options.traffic.seed, 7u);
  EXPECT_THAT(options.techniques, ElementsAre("q8_0"));
  EXPECT_FALSE(options.combine);
  EXPECT_EQ(options.mixed_bytes, 2u << 20);
  EXPECT_EQ(options.variants.size(), 1u);
  EXPECT_EQ(options.report, "r");
  EXPECT_EQ(options.acceptance, 0.6);
  EXPECT_EQ(options.max_sequences, 8u);
  EXPECT_EQ(options.max_machines, 3u);
  EXPECT_EQ(options.probe_repeats, 2u);
  EXPECT_EQ(options.out, "o");
  EXPECT_TRUE(options.verify);
  const auto closed =
      Parse<PlanOptions>({"plan", "--model", "m", "--price-per-hour", "1", "--concurrency", "9"});
  EXPECT_EQ(std::get<ClosedLoop>(closed.traffic.load).concurrency, 9u);
  EXPECT_EQ(closed.constraints.memory_bytes, std::nullopt);
  EXPECT_THAT(closed.ranks, ElementsAre(1u));
  const auto traced = Parse<PlanOptions>(
      {"plan", "--model", "m", "--price-per-hour", "1", "--trace", "t", "--ranks", "1,2,4"});
  EXPECT_EQ(traced.trace, "t");
  EXPECT_THAT(traced.ranks, ElementsAre(1u, 2u, 4u));
}

TEST(CommandLine, WrongFlagsAreOneLineUsageErrors) {
  const std::vector<std::vector<std::string>> cases = {
      {"nonsense"},
      {"--nonsense"},
      {"up"},
      {"up", "-f", "a", "--model", "b"},
      {"generate", "--model", "m"},
      {"generate", "--prompt", "a", "--messages", "b"},
      {"generate", "--prompt", "a", "--temperature", "3"},
      {"generate", "--prompt", "a", "--compute", "f32"},  // of which model?
      {"generate", "--prompt", "a", "--model", "m", "--compute", "bf16"},
      {"generate", "--prompt", "a", "--model", "m", "--device", "tpu"},
      {"generate", "--prompt", "a", "--device", "cpu"},
      {"evaluate", "--router", "h:1", "--model", "m", "--device", "cpu"},
      {"generate", "--prompt", "a", "--model", "m", "--kv-dtype", "int4"},
      {"evaluate", "--router", "h:1", "--model", "m", "--kv-dtype", "f16"},
      {"generate", "--prompt", "a", "--model", "m", "--drafter", "oracle"},
      {"generate", "--prompt", "a", "--model", "m", "--draft-model", "d"},
      {"generate", "--prompt", "a", "--drafter", "ngram"},  // for which model?
      {"generate", "--prompt", "a", "--top-k", "-1"},
      {"generate", "--prompt", "a", "--max-tokens", "-1"},
      {"generate", "--prompt", "a", "--logprobs", "21"},
      {"generate", "--prompt", "a", "--n", "0"},
      {"generate", "--prompt", "a", "--n", "010"},
      {"generate", "--prompt", "a", "--max-tokens", ""},
      {"generate", "--prompt", "a", "--temperature", "0.5x"},
      {"generate", "--prompt", "a", "--seed", "-1"},
      {"generate", "--prompt", "a", "--seed", "18446744073709551616"},
      {"generate", "--prompt", "a", "--best-of", "17"},
      {"generate", "--prompt", "a", "--n", "3", "--best-of", "2"},
      {"generate", "--prompt", "a", "--stop", ""},
      {"generate", "--prompt-tokens", "1,x"},
      {"generate", "--prompt", "a", "extra"},
      {"status", "--once", "--watch"},
      {"inspect"},
      {"inspect", "m", "--batch", "4"},  // on what?
      {"inspect", "m", "--fit", "2xL4", "--tensors"},
      {"inspect", "m", "--fit", "2xL4", "--batch", "0"},
      {"inspect", "m", "--fit", "2xL4", "--kv-dtype", "auto"},
      {"inspect", "m", "--fit", "2xL4", "--kv-dtype", "f32"},  // of CPUs
      {"evaluate", "--model", "m", "--concurrency", "0"},
      {"evaluate", "--model", "m", "--window", "8"},  // of what?
      {"evaluate", "--model", "m", "--perplexity", "f", "--window", "1"},
      {"evaluate", "--model", "m", "--perplexity", "f", "--stride", "0"},
      {"evaluate", "--model", "m", "--perplexity", "f", "--tasks", "t"},
      {"evaluate", "--model", "m", "--perplexity", "f", "--compare", "n"},
      {"evaluate", "--model", "m", "--perplexity", "f", "--max-tokens", "5"},
      {"evaluate", "--model", "m", "--perplexity", "f", "--baseline", "n"},
      {"evaluate", "--model", "m", "--perplexity", "f", "--save-records", "n"},
      {"evaluate", "--model", "m", "--perplexity", "f", "--probe", "1"},
      {"demo", "chat"},
      {"synthesize", "--shape", "135m"},
      {"synthesize", "--out", "m"},
      {"synthesize", "--out", "", "--shape", "135m"},
      {"synthesize", "--out", "m", "--shape", "135m", "--seed", "-1"},
      {"synthesize", "--out", "m", "--shape", "135m", "--layers", ""},
      {"synthesize", "--out", "m", "--shape", "135m", "--config", "c"},
      {"synthesize", "--out", "m", "--shape", "70b"},
      {"synthesize", "--out", "m", "--shape", "135m", "--dtype", "q3_k"},
      {"synthesize", "--out", "m", "--shape", "135m", "--dtype", "3"},
      {"synthesize", "--out", "m", "--shape", "135m", "--format", "onnx"},
      {"synthesize", "--out", "m", "--shape", "135m", "--layers", "-1"},
      {"synthesize", "--out", "m", "--shape", "135m", "--tied", "--untied"},
      {"plan"},
      {"plan", "--model", "m"},
      {"plan", "--model", "m", "--price-per-hour", "-1"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--memory", "8gib"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--memory", "5"},  // of what?
      {"plan", "--model", "m", "--price-per-hour", "1", "--ttft-p99", "soon"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--itl", "0"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--itl", "0ms"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--throughput", "0"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--min-quality", "1.1"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--price", "x"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--prompt-tokens", "0"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--concurrency", "0"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--concurrency", "1", "--rate", "1"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--requests", "0"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--shared-prefix-tokens", "128"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--acceptance", "1.5"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--max-machines", "0"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--ranks", "1,3"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--ranks", "32"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--trace", "t", "--rate", "1"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--trace", "t", "--prompt-tokens", "9"},
      {"plan", "--model", "m", "--price-per-hour", "1", "--trace", "t", "--verify"},
      {"report"},
      {"report", "--model", "m"},  // at what price?
      {"report", "--model", "m", "--price-per-hour", "0"},
      {"report", "--model", "m", "--price-per-hour", "1", "--history", "a"},
      {"report", "--history", "a", "--price-per-hour", "1"},
      {"report", "--history", "a", "--techniques", "q8_0"},
      {"report", "--history", "a", "--mixed-fit", "2MiB"},
      {"report", "--model", "m", "--price-per-hour", "1", "--mixed-fit", "2"},
      {"report", "--history", "a", "--accuracy", "2"},
      {"report", "--model", "m", "--price-per-hour", "1", "--accuracy", "0.5"},
      {"report", "--model", "m", "--price-per-hour", "1", "--techniques", "q3_k"},
      {"report", "--model", "m", "--price-per-hour", "1", "--variant", "a"},
      {"report", "--model", "m", "--price-per-hour", "1", "--cascade", "a@-1"},
      {"report", "--model", "m", "--price-per-hour", "1", "--batches", "0"},
      {"report", "--model", "m", "--price-per-hour", "1", "--batches", "1,257"},
      {"report", "--model", "m", "--price-per-hour", "1", "--speed-tokens", "1"},
      {"quantize", "--model", "m", "--out", "o"},
      {"quantize", "--model", "m", "--to", "int4", "--out", "o"},
      {"quantize", "--model", "m", "--to", "q8_0", "--out", ""},
      {"quantize", "--model", "m", "--to", "q8_0", "--out", "o", "--method", "magic"},
      {"quantize", "--model", "m", "--to", "q8_0", "--out", "o", "--damping", "2"},
      {"quantize", "--model", "m", "--to", "q8_0", "--out", "o", "--threads", "0"},
      {"quantize", "--model", "m", "--to", "q4_0", "--out", "o", "--fit", "small"},
      {"quantize", "--model", "m", "--to", "q4_0", "--out", "o", "--fit", "0"},
      {"quantize", "--model", "m", "--to", "q4_0", "--out", "o", "--fit", "2.5"},
      {"quantize", "--model", "m", "--to", "q4_0", "--out", "o", "--faster", "20"},
      {"quantize", "--model", "m", "--to", "q4_0", "--out", "o", "--faster", "0%"},
      {"quantize", "--model", "m", "--to", "q4_0", "--out", "o", "--faster", "inf%"},
      {"quantize", "--model", "m", "--to", "q4_0", "--out", "o", "--faster", "5%", "--fit", "1GB"},
      {"quantize", "--model", "m", "--to", "q4_0", "--out", "o", "--fit", "1GB", "--sensitivity-tokens", "0"},
      {"quantize", "--model", "m", "--to", "q8_0", "--out", "o", "--method", "rtn", "--samples", "5"},
      {"quantize", "--model", "m", "--to", "q8_0", "--out", "o", "--method", "rtn", "--seed", "1"},
      {"prune", "--model", "m", "--out", "o", "--pattern", "1:2"},
      {"prune", "--model", "m", "--out", "o", "--pattern", "2:4", "--sparsity", "0.5"},
      {"prune", "--model", "m", "--out", "o", "--sparsity", "1.5"},
      {"prune", "--model", "m", "--out", "o", "--sparsity", "0.5", "--method", "magic"},
      {"prune", "--model", "m", "--out", "o", "--remove-kv-heads", "1", "--ffn-multiple", "32"},
  };
  for (const auto& arguments : cases) {
    const CommandLine line = ParseCommandLine(arguments);
    SCOPED_TRACE(testing::PrintToString(arguments));
    ASSERT_FALSE(line.options.ok());
    EXPECT_EQ(ExitCodeFor(line.options.status()), kExitUsage);
    EXPECT_EQ(Message(line.options.status()).find('\n'), std::string::npos) << line.options.status();
    EXPECT_EQ(line.command, arguments[0].find("nonsense") == std::string::npos ? arguments[0] : "");
  }
}

TEST(CommandLine, NumbersAreFiniteTimesHaveUnitsAndTheLimitIsSaid) {
  const std::vector<std::string> plan = {"plan", "--model", "m", "--price-per-hour", "1"};
  const std::vector<std::string> report = {"report", "--model", "m", "--price-per-hour", "1"};
  const std::vector<std::string> generate = {"generate", "--prompt", "a"};
  const struct {
    std::vector<std::string> command;
    const char *flag, *value, *error;
  } cases[] = {
      {plan, "--rate", "nan", "nan is not a finite number"},
      {plan, "--rate", "inf", "inf is not a finite number"},
      {plan, "--rate", "0", "0 is not above 0"},
      {plan, "--rate", "x", "\"x\" is not a number"},
      {plan, "--throughput", "nan", "nan is not a finite number"},
      {plan, "--price", "-1", "-1 is not above 0"},
      {plan, "--min-quality", "nan", "nan is not a finite number"},
      {plan, "--min-quality", "1.5", "1.5 is not in [0, 1]"},
      {plan, "--acceptance", "nan", "nan is not a finite number"},
      {plan, "--itl", "5", "\"5\" has no unit: 5ms or 5s"},
      {plan, "--ttft-p99", "0.3", "\"0.3\" has no unit: 0.3ms or 0.3s"},
      {{"plan", "--model", "m"}, "--price-per-hour", "nan", "nan is not a finite number"},
      {{"report", "--model", "m"}, "--price-per-hour", "nan", "nan is not a finite number"},
      {{"report", "--model", "m"}, "--price-per-hour", "0", "0 is not above 0"},
      {report, "--speed-seconds", "nan", "nan is not a finite number"},
      {{"report", "--history", "a"}, "--accuracy", "0.5,nan", "nan is not a finite number"},
      {report, "--max-tokens", "0", "0 is not above 0"},
      {{"generate", "--prompt", "a", "--model", "m"}, "--drafter", "model", "model needs --draft-model"},
      {{"bench", "--model", "m"}, "--drafter", "model", "model needs --draft-model"},
      {generate, "--temperature", "nan", "nan is not a finite number"},
      {generate, "--top-p", "1.5", "1.5 is not in [0, 1]"},
      {generate, "--top-k", "-1", "\"-1\" is not a whole number, 0 or more"},
      {{"up", "--model", "m"}, "--ready-timeout", "nan", "nan is not a finite number"},
      {{"calibrate"}, "--epsilon", "nan", "nan is not a finite number"},
      {{"distill"}, "--layers", "0", "0 is not above 0"},
      {{"distill"}, "--learning-rate", "nan", "nan is not a finite number"},
      {{"bench"}, "--rate", "1,nan", "nan is not a finite number"},
      {{"certify"}, "--level", "nan", "nan is not a finite number"},
      {{"certify"}, "--probe-tokens", "0", "0 is not above 0"},
      {{"quantize"}, "--damping", "nan", "nan is not a finite number"},
  };
  for (const auto& each : cases) {
    std::vector<std::string> arguments = each.command;
    arguments.insert(arguments.end(), {each.flag, each.value});
    SCOPED_TRACE(testing::PrintToString(arguments));
    const Status status = ParseCommandLine(arguments).options.status();
    EXPECT_EQ(ExitCodeFor(status), kExitUsage);
    EXPECT_THAT(Message(status), HasSubstr(Concat(each.flag, ": ", each.error, " (terrace ")));
  }
  std::vector<std::string> timed = plan;
  timed.insert(timed.end(), {"--itl", "5ms", "--ttft-p99", "1.5s"});
  const auto options = Parse<PlanOptions>(timed);
  EXPECT_EQ(options.constraints.inter_token_p99_seconds, 0.005);
  EXPECT_EQ(options.constraints.first_token_p99_seconds, 1.5);
}

TEST(CommandLine, HelpNamesEveryFlagAndAnExample) {
  for (const char* command :
       {"up", "demo", "chat", "generate", "status", "inspect", "evaluate", "synthesize", "quantize", "prune",
        "bench", "certify", "verify-manifest", "report", "plan", "digest"}) {
    EXPECT_THAT(Parse<ShowText>({command, "--help"}).text, HasSubstr(Concat(": terrace ", command)))
        << command;
    EXPECT_THAT(Parse<ShowText>({"--help"}).text, HasSubstr(command));
  }
  EXPECT_THAT(Parse<ShowText>({}).text, HasSubstr("terrace demo"));
  EXPECT_EQ(Parse<ShowText>({"version"}).text, Parse<ShowText>({"--version"}).text);
}

}  // namespace
}  // namespace terrace
