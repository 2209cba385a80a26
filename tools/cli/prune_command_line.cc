#include "tools/cli/prune_command_line.h"

#include "tools/cli/option_values.h"

namespace terrace {

void AddPrune(CLI::App& app, PruneOptions& options) {
  CLI::App* const prune = app.add_subcommand(
      "prune",
      "Write a model with fewer weights: zeros, or fewer heads, channels and layers, or a smaller width.");
  AddRewritePaths(*prune, options);
  CLI::Option* const sparsity =
      prune->add_option("--sparsity", options.sparsity, "share of the weights that become zero; pays nowhere")
          ->type_name(kRealNumber)
          ->check(Quiet(CLI::Range(0.0, 1.0)));
  prune
      ->add_option("--pattern", options.pattern,
                   "2:4 (two of four neighbours stay; the others are skipped), 4:8")
      ->type_name("N:M")
      ->check(Quiet(CLI::IsMember(Names(kPrunePatterns))))
      ->excludes(sparsity);
  prune
      ->add_option(
          "--method", options.method,
          "of zeros: sparsegpt (weights that are left take over; the default), magnitude (the smallest go)")
      ->type_name("METHOD")
      ->check(Quiet(CLI::IsMember(Names(kPruneMethods))));
  CLI::Option* const remove_ffn =
      prune
          ->add_option("--remove-ffn", options.cut.ffn_share,
                       "share of all feed-forward channels: the least important, so layers differ in width")
          ->type_name(kRealNumber)
          ->check(Quiet(CLI::Range(0.0, 1.0)));
  prune->add_option("--ffn-multiple", options.cut.multiple, "of which widths stay multiples")
      ->type_name(kWholeNumber)
      ->capture_default_str()
      ->needs(remove_ffn);
  prune
      ->add_option("--remove-kv-heads", options.cut.kv_heads,
                   "KV heads of each layer, with the query heads that share them")
      ->type_name(kWholeNumber);
  prune->add_option("--remove-layers", options.cut.layers, "layers: those that change the least")
      ->type_name(kWholeNumber);
  prune
      ->add_option("--remove-hidden", options.cut.hidden,
                   Concat("channels of the residual stream: those that matter least; a multiple of ",
                          kHiddenMultiple, " stays"))
      ->type_name(kWholeNumber);
  prune->add_flag("--no-repair", options.no_repair,
                  "of --remove-...: what is left does not make up for what went");
  AddStepTimes(*prune, options);
  AddRewriteSettings(*prune, options, "magnitude can do without", "of sparsegpt and of repair");
  prune->footer(
      "Example: terrace prune --model models/terrace-demo-base --pattern 2:4 --out base-2of4 "
      "--calibration models/eval/calibration.jsonl\n"
      "Example: terrace prune --model models/terrace-demo-base --remove-ffn 0.2 --out base-narrow "
      "--calibration models/eval/calibration.jsonl");
}

}  // namespace terrace
