#include "base/signature.h"

#include <algorithm>
#include <utility>

#include "base/crypto.h"
#include "openssl/bio.h"
#include "openssl/err.h"
#include "openssl/evp.h"
#include "openssl/pem.h"
#include "openssl/x509.h"

namespace terrace {
namespace {

using KeyPtr = std::shared_ptr<EVP_PKEY>;
using BioPtr = std::unique_ptr<BIO, decltype(&BIO_free)>;
using ContextPtr = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;

const unsigned char* AsUnsigned(std::string_view bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

BioPtr Open(std::string_view pem) {
  return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), &BIO_free};
}

constexpr char kSeveral[] = "more than one key in PEM";

// Of which the first alone would be read.
bool HasSeveral(std::string_view pem) {
  constexpr std::string_view kBegin = "-----BEGIN ";
  const size_t first = pem.find(kBegin);
  return first != pem.npos && pem.find(kBegin, first + 1) != pem.npos;
}

int NoPassword(char*, int, int, void*) { return 0; }

// Null stays null; so does a key of another algorithm.
KeyPtr Own(EVP_PKEY* key) {
  KeyPtr owned(key, &EVP_PKEY_free);
  ERR_clear_error();
  return key != nullptr && EVP_PKEY_id(key) == EVP_PKEY_ED25519 ? owned : nullptr;
}

// What `write` put into a BIO of memory.
template <typename Write>
std::string WrittenBy(Write write) {
  const BioPtr bio(BIO_new(BIO_s_mem()), &BIO_free);
  CHECK(bio != nullptr && write(bio.get()) == 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return {data, static_cast<size_t>(size)};
}

std::string IdOf(const EVP_PKEY* key) {
  unsigned char* der = nullptr;
  const int size = i2d_PUBKEY(key, &der);
  CHECK(size > 0);
  const std::string id =
      ToHex(AsBytes(Sha256({reinterpret_cast<const char*>(der), static_cast<size_t>(size)})));
  OPENSSL_free(der);
  return id;
}

}  // namespace

PublicKey::PublicKey(std::shared_ptr<evp_pkey_st> key) : key_(std::move(key)), id_(IdOf(key_.get())) {}

StatusOr<PublicKey> PublicKey::Parse(std::string_view pem) {
  if (HasSeveral(pem)) return InvalidArgument(kSeveral);
  KeyPtr key = Own(PEM_read_bio_PUBKEY(Open(pem).get(), nullptr, &NoPassword, nullptr));
  if (key == nullptr) return InvalidArgument("no public Ed25519 key in PEM");
  return PublicKey(std::move(key));
}

bool PublicKey::HasSigned(std::string_view message, std::string_view signature) const {
  const ContextPtr context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  CHECK(context != nullptr);
  const bool is_good = EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key_.get()) == 1 &&
                       EVP_DigestVerify(context.get(), AsUnsigned(signature), signature.size(),
                                        AsUnsigned(message), message.size()) == 1;
  ERR_clear_error();
  return is_good;
}

std::string PublicKey::Pem() const {
  return WrittenBy([this](BIO* bio) { return PEM_write_bio_PUBKEY(bio, key_.get()); });
}

PrivateKey PrivateKey::Make() {
  KeyPtr key = Own(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
  CHECK(key != nullptr);
  return PrivateKey(std::move(key));
}

StatusOr<PrivateKey> PrivateKey::Parse(std::string_view pem) {
  if (HasSeveral(pem)) return InvalidArgument(kSeveral);
  KeyPtr key = Own(PEM_read_bio_PrivateKey(Open(pem).get(), nullptr, &NoPassword, nullptr));
  if (key == nullptr) return InvalidArgument("no private Ed25519 key in PEM without a password");
  return PrivateKey(std::move(key));
}

std::string PrivateKey::Sign(std::string_view message) const {
  const ContextPtr context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  std::string signature(kSignatureBytes, '\0');
  size_t size = signature.size();
  CHECK(context != nullptr && EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key_.get()) == 1 &&
        EVP_DigestSign(context.get(), reinterpret_cast<unsigned char*>(signature.data()), &size,
                       AsUnsigned(message), message.size()) == 1 &&
        size == kSignatureBytes);
  return signature;
}

PublicKey PrivateKey::public_key() const { return PublicKey(key_); }

std::string PrivateKey::Pem() const {
  return WrittenBy([this](BIO* bio) {
    return PEM_write_bio_PrivateKey(bio, key_.get(), nullptr, nullptr, 0, nullptr, nullptr);
  });
}

std::string ToBase64(std::string_view bytes) {
  std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0');  // and EVP's closing NUL
  const int size = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()), AsUnsigned(bytes),
                                   static_cast<int>(bytes.size()));
  out.resize(static_cast<size_t>(size));
  return out;
}

std::optional<std::string> ParseBase64(std::string_view text) {
  std::string out(text.size() / 4 * 3, '\0');
  const int size = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()), AsUnsigned(text),
                                   static_cast<int>(text.size()));
  ERR_clear_error();
  if (size < 0) return {};
  size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  out.resize(static_cast<size_t>(size) - std::min(padding, static_cast<size_t>(size)));
  if (ToBase64(out) != text) return {};
  return out;
}

}  // namespace terrace
