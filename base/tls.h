// The PEM files of one use of TLS, checked, and read again when they change. Errors name a file, never what
// is in it.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/file_stamp.h"
#include "base/metrics.h"
#include "base/status.h"

struct ssl_ctx_st;  // OpenSSL's SSL_CTX

namespace terrace {

// Paths; "" for what is not there.
struct TlsFiles {
  std::string certificate = {};  // the own one first, then those that vouch for it; with `key`
  std::string key = {};
  std::string ca =
      {};  // whose certificates are believed; "": a server asks for none, a client takes the system's

  friend bool operator==(const TlsFiles&, const TlsFiles&) = default;
};

// What sound files held. Immutable.
struct TlsMaterial {
  std::string identity_pem = {};  // the key and its certificates
  std::string ca_pem = {};
  // Of a server that speaks HTTP/1.1 over TLS 1.2 or later. Thread-safe; a stream made of it keeps it.
  std::shared_ptr<ssl_ctx_st> server_context = {};
  double expiry_unix_seconds =
      0;  // when the first of the own certificates ends; without any, of the authorities'
};

// FAILED_PRECONDITION "/etc/tls/key.pem is not the key of /etc/tls/cert.pem" for what cannot be used,
// NOT_FOUND for what cannot be read.
StatusOr<std::shared_ptr<const TlsMaterial>> LoadTls(const TlsFiles& files);

// Bytes in memory that this process can open by a path, for gRPC, which takes nothing but paths. Whoever
// opens it gets all of what one Replace said. The path is good until the process ends: gRPC may look at any
// time.
class AnonymousFile {
 public:
  AnonymousFile();
  Status Replace(std::string_view bytes);
  std::string path() const;

 private:
  const int descriptor_;  // never closed
};

// The files of one use, watched by a thread of its own. What cannot be used is logged and counted once, and
// what was there before stays. Thread-safe; shared by all that make connections with it.
class TlsSource {
 public:
  struct Options {
    std::string use = {};               // the metrics' label: "listen", "workers", "drafter" or "ranks"
    MetricRegistry* metrics = nullptr;  // outlives the source; null: nothing is told
    double period_seconds = 5;          // between looks at the files
  };
  // Errors of LoadTls.
  static StatusOr<std::shared_ptr<TlsSource>> Open(TlsFiles files, Options options);

  std::shared_ptr<const TlsMaterial> Current() const;
  // Looks at the files now, as the thread does every period.
  void Refresh();

  bool has_identity() const { return !files_.certificate.empty(); }
  bool has_ca() const { return !files_.ca.empty(); }
  // Where the current material's identity_pem and ca_pem can be read: files that only ever hold what was
  // checked.
  std::string identity_path() const { return identity_file_.path(); }
  std::string ca_path() const { return ca_file_.path(); }

 private:
  TlsSource(TlsFiles files, Options options) : files_(std::move(files)), options_(std::move(options)) {}
  Status Load(const std::vector<FileStamp>& stamps);
  void Watch(std::stop_token stop);

  const TlsFiles files_;
  const Options options_;
  AnonymousFile identity_file_, ca_file_;
  mutable std::mutex mutex_;
  std::shared_ptr<const TlsMaterial> current_;  // GUARDED_BY(mutex_)
  std::mutex refresh_mutex_;                    // one look at a time
  std::vector<FileStamp> stamps_;               // GUARDED_BY(refresh_mutex_): of the files when last read
  std::jthread watcher_;                        // last: it joins before what it uses dies
};

}  // namespace terrace
