// GPTQ at the size of real layers against the errors that tests/bench/gptq_reference.py, plain numpy, has
// written: says by how much the squared error of the outputs differs, and fails where it is more than 1%.
#include <cmath>
#include <cstdio>
#include <fstream>

#include "base/machine.h"
#include "tools/optimize/gptq.h"
#include "tools/optimize/testing_matrices.h"

namespace terrace {
namespace {

constexpr double kMostDifference = 0.01;
constexpr size_t kMostSize = 1 << 16;

struct Layer {
  size_t rows = 0, columns = 0, tokens = 0;
  uint32_t group = 0;
  double damping = 0, error = 0;  // by the reference
};

// The squared error of the outputs over the tokens.
double GptqError(const Layer& layer, ThreadPool& pool) {
  const GptqInputs inputs = MakeGptqInputs(layer.rows, layer.columns, layer.tokens);
  Hessian hessian(layer.columns);
  hessian.Add(inputs.x.values, layer.tokens, pool);
  const DType dtype = layer.group == 128 ? DType::kInt4G128 : DType::kInt4G32;
  const auto format = RowFormat::Create(dtype, layer.group, layer.columns);
  CHECK(format.ok(), Message(format.status()));
  const auto inverse = InvertHessian(hessian, layer.damping, /*by_size=*/false);
  CHECK(inverse.ok(), Message(inverse.status()));
  const FloatMatrix rounded =
      Gptq(inputs.matrix, *format, *inverse, {.searches_levels = false}, pool).ToFloat(pool);
  return OutputSquares(Difference(rounded, inputs.matrix), hessian, pool);
}

int Main(const char* path) {
  std::ifstream file(path);
  ThreadPool pool(UsableCores());
  int layers = 0;
  bool is_near = true;
  for (Layer layer;
       file >> layer.rows >> layer.columns >> layer.tokens >> layer.group >> layer.damping >> layer.error;
       ++layers) {
    const bool is_whole = layer.group == 32 || layer.group == 64 || layer.group == 128;
    const auto is_size = [](size_t size) { return size > 0 && size <= kMostSize; };
    if (!is_whole || !is_size(layer.rows) || !is_size(layer.columns) || !is_size(layer.tokens) ||
        layer.columns % layer.group != 0 || !(layer.error > 0)) {
      std::fprintf(stderr, "%s: line %d makes no sense\n", path, layers + 1);
      return 65;
    }
    const double error = GptqError(layer, pool), difference = error / layer.error - 1;
    std::printf("%zu x %zu, %zu tokens, groups of %u: %.6g, by the reference %.6g, %+.3f%%\n", layer.rows,
                layer.columns, layer.tokens, layer.group, error, layer.error, 100 * difference);
    is_near = is_near && std::abs(difference) <= kMostDifference;
  }
  if (layers == 0 || !file.eof()) {
    std::fprintf(stderr, "%s: is not what gptq_reference.py writes\n", path);
    return 65;
  }
  return is_near ? 0 : 1;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: gptq FILE (of tests/bench/gptq_reference.py)\n");
    return 64;
  }
  return terrace::Main(argv[1]);
}
