// terrace-distill: what `terrace distill` becomes. It is linked with libtorch, which `terrace` is not.
#include "tools/cli/command_main.h"
#include "tools/cli/distill_run.h"

int main(int argc, char** argv) {
  using namespace terrace;
  return CommandMain(argc, argv, [](const CommandOptions& options, const CommandContext& context) {
    if (const auto* const distill = std::get_if<DistillOptions>(&options))
      return TrainStudent(*distill, context);
    if (const auto* const show = std::get_if<ShowText>(&options)) {
      context.out << show->text;
      return Status();
    }
    return InvalidArgument("this program has one command, distill; the others are of terrace");
  });
}
