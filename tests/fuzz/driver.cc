// A main for a fuzz target where there is no libFuzzer: runs the inputs named on the command line, then
// random ones.
//   driver [--runs=N] [--seed=S] [--size=BYTES] [FILE...]
// An input that aborts is named on the way out; --seed=S --runs=1 runs it again.
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

char g_input[256];  // for the handler of SIGABRT

void Run(const std::string& name, const std::vector<uint8_t>& input) {
  std::snprintf(g_input, sizeof(g_input), "the input was %s\n", name.c_str());
  LLVMFuzzerTestOneInput(input.data(), input.size());
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t runs = 0, seed = 1, size = 400;
  std::signal(SIGABRT, [](int) { (void)!write(STDERR_FILENO, g_input, std::strlen(g_input)); });
  size_t files = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const size_t equals = argument.find('=');
    const auto is = [&](std::string_view flag) { return argument.substr(0, equals) == flag; };
    const auto value = [&] { return std::strtoull(argv[i] + equals + 1, nullptr, 10); };
    if (is("--runs")) {
      runs = value();
    } else if (is("--seed")) {
      seed = value();
    } else if (is("--size")) {
      size = value();
    } else {
      std::ifstream file(argv[i], std::ios::binary);
      if (!file) {
        std::fprintf(stderr, "cannot read %s\n", argv[i]);
        return 66;
      }
      Run(argv[i], std::vector<uint8_t>(std::istreambuf_iterator<char>(file), {}));
      ++files;
    }
  }
  for (uint64_t run = 0; run < runs; ++run) {
    std::mt19937 random(static_cast<uint32_t>(seed + run));
    std::vector<uint8_t> input(random() % size + 1);
    for (uint8_t& byte : input) byte = static_cast<uint8_t>(random());
    Run("--seed=" + std::to_string(seed + run), input);
  }
  std::printf("%zu files, %llu random inputs\n", files, static_cast<unsigned long long>(runs));
}
