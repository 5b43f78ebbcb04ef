#include "base/blake2b.h"

#include <bit>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace amk {
namespace {

constexpr size_t kBlockBytes = 128;

constexpr uint64_t kIv[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                             0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};

// RFC 7693, section 2.7; rounds 10 and 11 use rows 0 and 1 again.
constexpr uint8_t kSigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

uint64_t load_le64(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof word);
  if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap64(word);
  return word;
}

inline void mix(uint64_t& a, uint64_t& b, uint64_t& c, uint64_t& d, uint64_t x, uint64_t y) {
  a += b + x;
  d = std::rotr(d ^ a, 32);
  c += d;
  b = std::rotr(b ^ c, 24);
  a += b + y;
  d = std::rotr(d ^ a, 16);
  c += d;
  b = std::rotr(b ^ c, 63);
}

// A template per round, so that the message schedule is constants and the state stays in registers.
template <size_t kRound>
inline void one_round(uint64_t* v, const uint64_t* m) {
  constexpr const uint8_t* s = kSigma[kRound % 10];
  mix(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
  mix(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
  mix(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
  mix(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
  mix(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
  mix(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
  mix(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
  mix(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
}

template <size_t... kRounds>
inline void all_rounds(uint64_t* v, const uint64_t* m, std::index_sequence<kRounds...>) {
  (one_round<kRounds>(v, m), ...);
}

}  // namespace

Blake2b::Blake2b(size_t digest_bytes) : digest_bytes_(digest_bytes) {
  AMK_CHECK(digest_bytes >= 1 && digest_bytes <= 64, AMK_ERR_INTERNAL, "a BLAKE2b digest of %zu bytes", digest_bytes);
  std::memcpy(state_, kIv, sizeof state_);
  state_[0] ^= 0x01010000 ^ digest_bytes;  // parameter block: no key, fanout 1, depth 1
}

void Blake2b::compress(const uint8_t* block, bool is_last) {
  uint64_t m[16], v[16];
  for (int i = 0; i < 16; ++i) m[i] = load_le64(block + 8 * i);
  std::memcpy(v, state_, sizeof state_);
  std::memcpy(v + 8, kIv, sizeof kIv);
  v[12] ^= total_bytes_;
  if (is_last) v[14] = ~v[14];
  all_rounds(v, m, std::make_index_sequence<12>{});
  for (int i = 0; i < 8; ++i) state_[i] ^= v[i] ^ v[i + 8];
}

void Blake2b::update(const void* data, size_t nbytes) {
  const uint8_t* p = static_cast<const uint8_t*>(data);
  // The last block is compressed by finish(), so a full one waits until another byte follows.
  while (nbytes > 0) {
    if (pending_ == kBlockBytes) {
      total_bytes_ += kBlockBytes;
      compress(block_, false);
      pending_ = 0;
    }
    if (pending_ == 0) {
      for (; nbytes > kBlockBytes; p += kBlockBytes, nbytes -= kBlockBytes) {
        total_bytes_ += kBlockBytes;
        compress(p, false);
      }
    }
    const size_t room = kBlockBytes - pending_, take = nbytes < room ? nbytes : room;
    std::memcpy(block_ + pending_, p, take);
    pending_ += take;
    p += take;
    nbytes -= take;
  }
}

void Blake2b::finish(uint8_t* digest) {
  std::memset(block_ + pending_, 0, kBlockBytes - pending_);
  total_bytes_ += pending_;
  compress(block_, true);
  for (size_t i = 0; i < digest_bytes_; ++i) digest[i] = static_cast<uint8_t>(state_[i / 8] >> (8 * (i % 8)));
}

std::array<uint8_t, 32> blake2b_256(const void* data, size_t nbytes) {
  std::array<uint8_t, 32> digest;
  Blake2b hash(digest.size());
  hash.update(data, nbytes);
  hash.finish(digest.data());
  return digest;
}

std::string to_hex(const uint8_t* bytes, size_t nbytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < nbytes; ++i) {
    out += kDigits[bytes[i] >> 4];
    out += kDigits[bytes[i] & 15];
  }
  return out;
}

}  // namespace amk
