#include "base/tls.h"

#include <openssl/ssl.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/testing_tls.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string ReadFile(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}
void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

class TlsTest : public ::testing::Test {
 protected:
  static std::string Folder() {
    const std::string folder =
        ::testing::TempDir() + "/" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder);
    return folder;
  }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  std::shared_ptr<TlsSource> Open(const TlsFiles& files) {
    // Only the test looks at the files.
    auto source = TlsSource::Open(files, {.use = "listen", .metrics = &metrics_, .period_seconds = 1e6});
    CHECK(source.ok(), Message(source.status()));
    return *source;
  }
  std::string Metrics() const { return metrics_.Render(); }

  const std::string folder_ = Folder();
  TestAuthority authority_{folder_, "authority"};
  MetricRegistry metrics_;
};

TEST_F(TlsTest, SoundFilesMakeAContextAndTellWhenTheyEnd) {
  TlsFiles files = authority_.Issue("server", /*days=*/30);
  files.ca = authority_.ca_path();
  const auto loaded = LoadTls(files);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_NE((*loaded)->server_context, nullptr);
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  EXPECT_NEAR((*loaded)->expiry_unix_seconds, now + 30 * 86400.0, 3600);
  EXPECT_THAT((*loaded)->identity_pem, AllOf(HasSubstr("PRIVATE KEY"), HasSubstr("CERTIFICATE")));
}

TEST_F(TlsTest, ErrorsNameTheFileAndNothingThatIsInIt) {
  const TlsFiles good = authority_.Issue("good"), other = authority_.Issue("other");
  const std::string certificate = ReadFile(good.certificate), key = ReadFile(good.key);
  WriteFile(Path("empty.pem"), "");
  WriteFile(Path("secret.pem"), "hunter2\n");
  WriteFile(Path("cut.pem"), certificate + certificate.substr(0, certificate.size() / 2));
  WriteFile(Path("damaged.pem"), std::string(certificate).replace(certificate.size() / 2, 8, "hunter2*"));
  WriteFile(Path("large.pem"), certificate + std::string(size_t{2} << 20, '\n'));
  const struct {
    const char* name;
    TlsFiles files;
    std::string want;
  } cases[] = {
      {"no such file", {.certificate = Path("absent.pem"), .key = good.key}, "absent.pem cannot be read"},
      {"no such key",
       {.certificate = good.certificate, .key = Path("absent.pem")},
       "absent.pem cannot be read"},
      {"empty", {.certificate = Path("empty.pem"), .key = good.key}, "empty.pem holds no PEM certificate"},
      {"not PEM",
       {.certificate = Path("secret.pem"), .key = good.key},
       "secret.pem holds no PEM certificate"},
      {"cut", {.certificate = Path("cut.pem"), .key = good.key}, "cut.pem holds a damaged certificate"},
      {"damaged",
       {.certificate = Path("damaged.pem"), .key = good.key},
       "damaged.pem holds no PEM certificate"},
      {"large", {.certificate = Path("large.pem"), .key = good.key}, "large.pem has more than 1048576 bytes"},
      {"turned", {.certificate = good.key, .key = good.certificate}, "good.key.pem holds no PEM certificate"},
      {"no key",
       {.certificate = good.certificate, .key = Path("secret.pem")},
       "secret.pem holds no PEM private key"},
      {"another's key",
       {.certificate = good.certificate, .key = other.key},
       "other.key.pem is not the key of "},
      {"authorities", {.ca = Path("secret.pem")}, "secret.pem holds no PEM certificate"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const Status status = LoadTls(c.files).status();
    EXPECT_EQ(status.code(), c.want == "absent.pem cannot be read" ? StatusCode::kNotFound
                                                                   : StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(status), AllOf(HasSubstr(c.want), Not(HasSubstr("hunter2"))));
  }
}

TEST_F(TlsTest, ChangedFilesAreReadAgain) {
  const TlsFiles files = authority_.Issue("server", /*days=*/30);
  const auto source = Open(files);
  const auto first = source->Current();
  source->Refresh();
  EXPECT_EQ(source->Current(), first) << "nothing has changed";
  authority_.Issue("server", /*days=*/90);
  source->Refresh();
  const auto second = source->Current();
  EXPECT_GT(second->expiry_unix_seconds, first->expiry_unix_seconds);
  EXPECT_EQ(ReadFile(source->identity_path()), second->identity_pem);
  EXPECT_THAT(Metrics(), HasSubstr("terrace_tls_reload_failures_total{use=\"listen\"} 0\n"));
}

TEST_F(TlsTest, WhatCannotBeUsedIsCountedOnceAndTheOldStays) {
  const TlsFiles files = authority_.Issue("server");
  const std::string key = ReadFile(files.key);
  const auto source = Open(files);
  const auto first = source->Current();
  WriteFile(files.key, "half a key");
  for (int look = 0; look < 3; ++look) source->Refresh();
  EXPECT_EQ(source->Current(), first);
  EXPECT_EQ(ReadFile(source->identity_path()), first->identity_pem);
  EXPECT_THAT(Metrics(), HasSubstr("terrace_tls_reload_failures_total{use=\"listen\"} 1\n"));
  std::filesystem::remove(files.key);
  source->Refresh();
  EXPECT_EQ(source->Current(), first);
  WriteFile(files.key, key);
  source->Refresh();
  EXPECT_NE(source->Current(), first);
  EXPECT_EQ(source->Current()->identity_pem, first->identity_pem);
}

TEST_F(TlsTest, TheThreadLooksByItself) {
  const TlsFiles files = authority_.Issue("server", /*days=*/30);
  const auto source = *TlsSource::Open(files, {.use = "listen", .metrics = nullptr, .period_seconds = 0.001});
  const auto first = source->Current();
  authority_.Issue("server", /*days=*/90);
  while (source->Current() == first) std::this_thread::yield();
}

TEST_F(TlsTest, AnOpenAnonymousFileKeepsWhatItHeld) {
  AnonymousFile file;
  ASSERT_TRUE(file.Replace("the first text").ok());
  std::ifstream open(file.path());
  ASSERT_TRUE(file.Replace("second").ok());
  std::string line;
  std::getline(open, line);
  EXPECT_EQ(line, "the first text");
  EXPECT_EQ(ReadFile(file.path()), "second");
}

}  // namespace
}  // namespace terrace
