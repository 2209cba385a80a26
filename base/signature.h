// Ed25519 signatures (RFC 8032), OpenSSL's. Keys are PEM texts without a password: a private one is PKCS #8,
// a public one SubjectPublicKeyInfo, as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write
// them. Keys are immutable; copies share one. Thread-safe.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

struct evp_pkey_st;  // OpenSSL's EVP_PKEY

namespace terrace {

inline constexpr size_t kSignatureBytes = 64;
inline constexpr size_t kMaxKeyFileBytes = 64 << 10;  // of a file with a PEM text

class PublicKey {
 public:
  // INVALID_ARGUMENT when `pem` holds no public Ed25519 key, or more than one key.
  static StatusOr<PublicKey> Parse(std::string_view pem);

  bool HasSigned(std::string_view message, std::string_view signature) const;
  // The SHA-256 of its SubjectPublicKeyInfo in DER, 64 lower-case hexadecimal digits.
  const std::string& id() const { return id_; }
  std::string Pem() const;

 private:
  friend class PrivateKey;
  explicit PublicKey(std::shared_ptr<evp_pkey_st> key);

  std::shared_ptr<evp_pkey_st> key_;
  std::string id_;
};

class PrivateKey {
 public:
  static PrivateKey Make();  // from the system's random source
  // INVALID_ARGUMENT when `pem` holds no private Ed25519 key, more than one key, or one with a password. The
  // message holds nothing of it.
  static StatusOr<PrivateKey> Parse(std::string_view pem);

  std::string Sign(std::string_view message) const;  // kSignatureBytes; the same each time
  PublicKey public_key() const;
  std::string Pem() const;

 private:
  explicit PrivateKey(std::shared_ptr<evp_pkey_st> key) : key_(std::move(key)) {}

  std::shared_ptr<evp_pkey_st> key_;
};

// RFC 4648, with padding. What is not exactly what ToBase64 makes of some bytes is none.
std::string ToBase64(std::string_view bytes);
std::optional<std::string> ParseBase64(std::string_view text);

}  // namespace terrace
