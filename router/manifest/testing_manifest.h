// Manifests for tests, signed with keys that are made when they run.
#pragma once

#include <fstream>
#include <string>

#include "base/status.h"
#include "router/manifest/manifest.h"

namespace terrace {

// A passing one, within the limits that a tier has by itself.
inline Manifest TestManifest(const std::string& model_digest, const std::string& text_digest) {
  return {.tool = "terrace 0",
          .created = "2026-11-30T12:00:00Z",
          .candidate = {"small", model_digest, text_digest},
          .baseline = {"large", "digest of large", text_digest},
          .task_set_digest = "digest of tasks",
          .report = {{"candidate", {{"in_process", {{"compute", "auto"}, {"kv_dtype", "f32"}}}}},
                     {"thresholds",
                      {{"margin", 0.05}, {"level", 0.05}, {"max_mean_kl", 0.1}, {"max_flip_rate", 0.1}}},
                     {"comparison",
                      {{"tasks", {{"classify", {{"rows", 200}, {"difference", -0.005}}}}},
                       {"divergence", {{"mean_kl", 0.01}, {"flip_rate", 0.02}}}}}}};
}

inline void WriteTestFile(const std::string& path, const std::string& text) {
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream << text;
  stream.close();
  CHECK(stream.good(), path);
}

// The file of its public half is `folder`/`name`.pem.
struct TestSigner {
  TestSigner(const std::string& folder, const std::string& name) : file(folder + "/" + name + ".pem") {
    WriteTestFile(file, key.public_key().Pem());
  }

  const PrivateKey key = PrivateKey::Make();
  const std::string file;
};

}  // namespace terrace
