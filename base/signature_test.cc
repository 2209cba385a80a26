#include "base/signature.h"

#include "base/crypto.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

std::string FromHex(std::string_view hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    out.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  return out;
}

// RFC 8032, 7.1, test 2. Behind the fixed heads of RFC 8410's DER forms stand the keys themselves.
constexpr char kSecret[] = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
constexpr char kPublic[] = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
constexpr char kSignature[] =
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";

std::string Pem(const std::string& label, const std::string& der) {
  return Concat("-----BEGIN ", label, "-----\n", ToBase64(der), "\n-----END ", label, "-----\n");
}
std::string PrivatePem() {
  return Pem("PRIVATE KEY", FromHex("302e020100300506032b657004220420") + FromHex(kSecret));
}
std::string PublicDer() { return FromHex("302a300506032b6570032100") + FromHex(kPublic); }

TEST(Signature, IsThatOfTheStandard) {
  const auto key = PrivateKey::Parse(PrivatePem());
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_EQ(ToHex(key->Sign("\x72")), kSignature);
  const auto verifier = PublicKey::Parse(Pem("PUBLIC KEY", PublicDer()));
  ASSERT_TRUE(verifier.ok()) << verifier.status();
  EXPECT_TRUE(verifier->HasSigned("\x72", FromHex(kSignature)));
  EXPECT_EQ(verifier->id(), ToHex(AsBytes(Sha256(PublicDer()))));
  EXPECT_EQ(key->public_key().id(), verifier->id());
}

TEST(Signature, KeysAreReadBackFromTheirPem) {
  const PrivateKey key = PrivateKey::Make();
  const auto again = PrivateKey::Parse(key.Pem());
  ASSERT_TRUE(again.ok()) << again.status();
  const auto verifier = PublicKey::Parse(key.public_key().Pem());
  ASSERT_TRUE(verifier.ok()) << verifier.status();
  EXPECT_TRUE(verifier->HasSigned("message", again->Sign("message")));
  EXPECT_NE(PrivateKey::Make().public_key().id(), verifier->id());
}

TEST(Signature, OfAnotherMessageKeyOrLengthIsRefused) {
  const PrivateKey key = PrivateKey::Make();
  const PublicKey verifier = key.public_key();
  const std::string signature = key.Sign("message");
  EXPECT_TRUE(verifier.HasSigned("message", signature));
  EXPECT_FALSE(verifier.HasSigned("messagf", signature));
  EXPECT_FALSE(verifier.HasSigned("", signature));
  EXPECT_FALSE(PrivateKey::Make().public_key().HasSigned("message", signature));
  EXPECT_FALSE(verifier.HasSigned("message", ""));
  EXPECT_FALSE(verifier.HasSigned("message", signature + "x"));
  for (size_t bit = 0; bit < 8 * kSignatureBytes; ++bit) {
    std::string changed = signature;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << bit % 8));
    EXPECT_FALSE(verifier.HasSigned("message", changed)) << bit;
  }
}

TEST(Signature, WhatIsNoKeyIsRefused) {
  const PrivateKey key = PrivateKey::Make();
  const std::string secret = key.Pem(), open = key.public_key().Pem();
  EXPECT_FALSE(PrivateKey::Parse(secret + secret).ok()) << "two of them";
  EXPECT_FALSE(PublicKey::Parse(open + PrivateKey::Make().public_key().Pem()).ok());
  for (const std::string& pem : {std::string(), std::string("x"), key.public_key().Pem()})
    EXPECT_EQ(PrivateKey::Parse(pem).status().code(), StatusCode::kInvalidArgument) << pem;
  // That of the curve P-256 is well-formed, but of another algorithm.
  const std::string p256 = FromHex(
      "3059301306072a8648ce3d020106082a8648ce3d030107034200046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0"
      "f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5");
  for (const std::string& pem : {std::string(), std::string("x"), PrivatePem(), Pem("PUBLIC KEY", p256)})
    EXPECT_EQ(PublicKey::Parse(pem).status().code(), StatusCode::kInvalidArgument) << pem;
}

TEST(Base64, IsThatOfTheStandardAndNothingElseIsRead) {
  const std::pair<const char*, const char*> cases[] = {
      {"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"}, {"foob", "Zm9vYg=="}, {"fooba", "Zm9vYmE="}};
  for (const auto& [bytes, text] : cases) {
    EXPECT_EQ(ToBase64(bytes), text);
    EXPECT_EQ(ParseBase64(text), bytes);
  }
  for (const char* bad : {"Zg", "Zg=", "Zh==", "Zg==\n", " Zg==", "Zm8", "Zm9=", "====", "Z===", "Zg==Zg=="})
    EXPECT_FALSE(ParseBase64(bad).has_value()) << bad;
}

}  // namespace
}  // namespace terrace
