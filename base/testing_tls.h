// Certificates for tests, made when they run: an authority, and certificates of it in files of a folder.
#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/tls.h"

namespace terrace {

class TestAuthority {
 public:
  // Its own certificate is `folder`/`name`.ca.pem.
  TestAuthority(std::string folder, const std::string& name)
      : folder_(std::move(folder)), name_(name), key_(NewKey()) {
    certificate_ = Make(name, key_.get(), /*days=*/365, {{NID_basic_constraints, "critical,CA:TRUE"}});
    Write(ca_path(), [this](FILE* file) { return PEM_write_X509(file, certificate_.get()); });
  }

  std::string ca_path() const { return folder_ + "/" + name_ + ".ca.pem"; }

  // Writes a certificate for localhost and 127.0.0.1 (and `host`, if given) with its key, in place of what
  // has that name.
  TlsFiles Issue(const std::string& name, int days = 30, const std::string& host = "") const {
    const KeyPtr key = NewKey();
    const std::string names = "DNS:localhost,IP:127.0.0.1" + (host.empty() ? "" : ",DNS:" + host);
    const CertificatePtr certificate = Make(name, key.get(), days, {{NID_subject_alt_name, names}});
    TlsFiles files = {.certificate = folder_ + "/" + name + ".pem", .key = folder_ + "/" + name + ".key.pem"};
    Write(files.certificate, [&](FILE* file) { return PEM_write_X509(file, certificate.get()); });
    Write(files.key, [&](FILE* file) {
      return PEM_write_PrivateKey(file, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
    });
    return files;
  }

 private:
  using KeyPtr = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
  using CertificatePtr = std::unique_ptr<X509, decltype(&X509_free)>;
  struct Extension {
    int id;
    std::string value;
  };

  static KeyPtr NewKey() { return {EVP_EC_gen("P-256"), &EVP_PKEY_free}; }

  // Signed by the authority, or by itself when that is the authority.
  CertificatePtr Make(const std::string& name, EVP_PKEY* key, int days,
                      const std::vector<Extension>& extensions) const {
    static long serial = 0;
    CertificatePtr out(X509_new(), &X509_free);
    X509* const issuer = certificate_ == nullptr ? out.get() : certificate_.get();
    X509_set_version(out.get(), X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(out.get()), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(out.get()), -86400L);
    X509_gmtime_adj(X509_getm_notAfter(out.get()), 86400L * days);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(out.get()), "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    X509_set_issuer_name(out.get(), X509_get_subject_name(issuer));
    X509_set_pubkey(out.get(), key);
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, out.get(), nullptr, nullptr, 0);
    for (const Extension& each : extensions) {
      X509_EXTENSION* const made = X509V3_EXT_conf_nid(nullptr, &context, each.id, each.value.c_str());
      CHECK(made != nullptr && X509_add_ext(out.get(), made, -1) == 1);
      X509_EXTENSION_free(made);
    }
    CHECK(X509_sign(out.get(), key_.get(), EVP_sha256()) > 0);
    return out;
  }

  template <typename Writer>
  static void Write(const std::string& path, Writer write) {
    FILE* const file = std::fopen((path + ".new").c_str(), "wb");
    CHECK(file != nullptr && write(file) == 1 && std::fclose(file) == 0, path);
    CHECK(std::rename((path + ".new").c_str(), path.c_str()) == 0, path);
  }

  const std::string folder_, name_;
  const KeyPtr key_;
  CertificatePtr certificate_{nullptr, &X509_free};
};

}  // namespace terrace
