// What tests of quantization have in common.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "tools/optimize/quantize.h"
#include "tools/optimize/testing_rewrite.h"

namespace terrace {

template <typename Entry, size_t kCount>
Entry Named(const Entry (&entries)[kCount], std::string_view name) {
  for (const Entry& entry : entries) {
    if (entry.name == name) return entry;
  }
  CHECK(false, "no ", name);
  return entries[0];
}

class QuantizeTest : public testing::Test {
 protected:
  QuantizeTest() {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directory(folder_);
  }
  QuantizeRequest Request(std::string_view target, std::string_view method, const std::string& out) const {
    QuantizeRequest request;
    request.model = DemoFolder(kNano);
    request.out = folder_ / out;
    request.target = Named(kQuantizeTargets, target);
    request.method = Named(kQuantizeMethods, method);
    request.calibration = {.path = kRows, .samples = 10, .seed = 1};
    request.threads = 2;
    return request;
  }
  std::vector<std::string> Entries() const { return EntriesOf(folder_); }
  const std::filesystem::path folder_ = std::filesystem::path(testing::TempDir()) / "quantize";
};

inline QuantizeReport Quantized(const QuantizeRequest& request) {
  const auto report = Quantize(request);
  CHECK(report.ok(), Message(report.status()));
  return *report;
}

inline std::map<std::string, std::string> BytesOf(const std::string& out) {
  return terrace::BytesOf(out, "quantize");
}

// From the demo model, in nats a token.
inline double Divergence(const std::string& path) { return terrace::Divergence(path, GoldenTexts(8)); }

}  // namespace terrace
