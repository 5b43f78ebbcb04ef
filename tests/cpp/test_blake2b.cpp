// BLAKE2b against RFC 7693's example and digests computed by another implementation (Python's hashlib).
#include "base/blake2b.h"
#include "check.h"

namespace {

std::string digest_of(const std::string& data, size_t digest_bytes, size_t piece_bytes) {
  amk::Blake2b hash(digest_bytes);
  for (size_t i = 0; i < data.size(); i += piece_bytes)
    hash.update(data.data() + i, std::min(piece_bytes, data.size() - i));
  uint8_t out[64];
  hash.finish(out);
  return amk::to_hex(out, digest_bytes);
}

// Byte i is 7 * i + 1 mod 256.
std::string pattern(size_t n) {
  std::string s;
  for (size_t i = 0; i < n; ++i) s += static_cast<char>(i * 7 + 1);
  return s;
}

}  // namespace

TEST(rfc_7693_appendix_a) {
  CHECK_EQ(digest_of("abc", 64, 3),
           "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d1"
           "7d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923");
  CHECK_EQ(digest_of("", 64, 1),
           "786a02f742015903c6c6fd852552d272912f4740e15847618a86e217f71f5419"
           "d25e1031afee585313896444934eb04b903a685b1448b755d56f701afe9be2ce");
}

TEST(digests_of_32_bytes_around_block_borders) {
  const struct {
    size_t nbytes;
    const char* digest;
  } kVectors[] = {
      {0, "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"},
      {1, "ee155ace9c40292074cb6aff8c9ccdd273c81648ff1149ef36bcea6ebb8a3e25"},
      {3, "e43d000b0a37d6fcddcd15640107181a908675e1820dd5ae307155ffff196ba5"},
      {127, "3b03a73c3c02e3eef11be3e2e16c12ccf6090dea00aa861ded320910892e13ac"},
      {128, "6b89237e0a469a721c700b8bbcb51b6231c48e71ff023e0e3444ec84882ae32e"},
      {129, "524a9dc9d008a9ce1d9d2a111bcd10d2461a02dadf30ec5a47225501608a87eb"},
      {255, "c00ba3c990ad9e1b4ebb2fb2127b74f642b2a888b985be208f7a65ad4db0a6fc"},
      {256, "e7001e3026924e6650fcd5b274bc3ddf556a6c7fedfe038383c0f4ad5f26cfc9"},
      {257, "080f7f2ee61cc8ffcf2ad907f7a9824a8445c5e4b194a0106c65f9b9c1ea6787"},
      {1000, "1d16566788d72e44f7c8ca9aaf73edc64bb03fc69322cb735f49974d7c9ce383"},
  };
  for (const auto& v : kVectors) {
    const std::string data = pattern(v.nbytes);
    const auto whole = amk::blake2b_256(data.data(), data.size());
    CHECK_EQ(amk::to_hex(whole.data(), whole.size()), v.digest);
    for (size_t piece : {1, 7, 64, 127, 128, 129, 300}) CHECK_EQ(digest_of(data, 32, piece), v.digest);
  }
}
