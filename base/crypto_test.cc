#include "base/crypto.h"

#include "gtest/gtest.h"

namespace terrace {
namespace {

// FIPS 180-4's example, and RFC 4231's second one.
TEST(Crypto, DigestsAreThoseOfTheStandards) {
  EXPECT_EQ(ToHex(AsBytes(Sha256("abc"))),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(ToHex(AsBytes(HmacSha256("Jefe", "what do ya want for nothing?"))),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

TEST(Crypto, ADigestIsReadBackFromItsDigits) {
  const Digest256 digest = Sha256("x");
  const std::string hex = ToHex(AsBytes(digest));
  EXPECT_EQ(ParseDigest256(hex), digest);
  std::string upper = hex;
  for (char& c : upper) c = static_cast<char>(toupper(c));
  EXPECT_EQ(ParseDigest256(upper), digest);
  for (const std::string& bad : {hex.substr(1), hex + "0", std::string(64, 'g'), std::string()}) {
    EXPECT_FALSE(ParseDigest256(bad).has_value()) << bad;
  }
}

TEST(Crypto, DigestsAreComparedWhole) {
  Digest256 a = Sha256("a"), b = a;
  EXPECT_TRUE(AreEqualInConstantTime(a, b));
  b.back() ^= 1;
  EXPECT_FALSE(AreEqualInConstantTime(a, b));
}

TEST(Crypto, SecretsAreNotRepeated) {
  EXPECT_EQ(SecretBytes(32).size(), 32u);
  EXPECT_NE(SecretBytes(32), SecretBytes(32));
}

}  // namespace
}  // namespace terrace
