// A step of cuda/gdn.cuh beside the same step with a plain butterfly for each of its sums.
// In: how a warp owns rows, whether k and q are normalised, a seed, and whether the plain butterflies start with the
// nearest lanes instead of the farthest. Out: how many words of the state, of o and of the factors have other bits. And
// the gates of one head.
#include <bit>
#include <random>

#include "gdn.cuh"

namespace {

using namespace amk;

constexpr float kScale = 0.09f, kEps = 1e-6f;

template <int kLanes>
float plain_sum(float v, bool nearest_first) {
  for (int i = 1; i < kLanes; i *= 2) v += __shfl_xor_sync(kWholeWarp, v, nearest_first ? i : kLanes / (2 * i));
  return v;
}

template <int kLanes, int kPieces>
GdnFactors plain_factors(const float4 (&k)[kPieces], const float4 (&q)[kPieces], bool l2norm, bool nearest_first) {
  GdnFactors f{0, 0, 1.0f, kScale, plain_sum<kLanes>(dot(q, k), nearest_first)};
  if (l2norm) {
    f.k = gdn_l2_factor(plain_sum<kLanes>(dot(k, k), nearest_first), kEps);
    f.q = kScale * gdn_l2_factor(plain_sum<kLanes>(dot(q, q), nearest_first), kEps);
  }
  return f;
}

struct Buffers {
  std::vector<float> state, k, q, v, state_out, o, factors;
};

template <int kLanes, int kRows>
void step(const Buffers& in, bool l2norm, bool plain, bool nearest_first, Buffers* out) {
  using Owner = GdnOwner<kLanes, kRows>;
  const auto piece = [](const std::vector<float>& from, int row, int p) {
    const float* at = &from[static_cast<size_t>(row * kGdnMaxDim + Owner::lane_element() + Owner::piece_element(p))];
    return float4{at[0], at[1], at[2], at[3]};
  };
  float4 state[kRows][Owner::kPieces], k[Owner::kPieces], q[Owner::kPieces];
  for (int p = 0; p < Owner::kPieces; ++p) {
    k[p] = piece(in.k, 0, p);
    q[p] = piece(in.q, 0, p);
    for (int r = 0; r < kRows; ++r) state[r][p] = piece(in.state, Owner::lane_row() + Owner::set_row(r), p);
  }
  GdnFactors f = plain ? plain_factors<kLanes>(k, q, l2norm, nearest_first)
                       : gdn_vector_factors<kLanes>(k, q, kScale, l2norm, kEps);
  f.decay = 0.83f;
  f.beta = 0.71f;
  const auto row = [](int r) { return static_cast<size_t>(Owner::lane_row() + Owner::set_row(r)); };
  if (!plain) {
    const float o = gdn_step<Owner>(state, k, q, f, in.v[row(Owner::own_set())]);
    if (Owner::has_output()) out->o[row(Owner::own_set())] += o;  // from 0: each row's once
  } else {
    for (int r = 0; r < kRows; ++r) {
      const float sk = plain_sum<kLanes>(dot(state[r], k), nearest_first),
                  sq = plain_sum<kLanes>(dot(state[r], q), nearest_first);
      const float delta = f.beta * (in.v[row(r)] - f.decay * f.k * sk) * f.k;
      for (int p = 0; p < Owner::kPieces; ++p) {
        float4& s = state[r][p];
        s = {fmaf(delta, k[p].x, f.decay * s.x), fmaf(delta, k[p].y, f.decay * s.y), fmaf(delta, k[p].z, f.decay * s.z),
             fmaf(delta, k[p].w, f.decay * s.w)};
      }
      out->o[row(r)] = f.q * fmaf(delta, f.qk, f.decay * sq);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < Owner::kPieces; ++p) {
      const float4 s = state[r][p];
      float* at =
          &out->state_out[row(r) * kGdnMaxDim + static_cast<size_t>(Owner::lane_element() + Owner::piece_element(p))];
      at[0] = s.x, at[1] = s.y, at[2] = s.z, at[3] = s.w;
    }
  }
  float* of_lane = &out->factors[3 * threadIdx.x];
  of_lane[0] = f.k, of_lane[1] = f.q, of_lane[2] = f.qk;
}

int different(const std::vector<float>& a, const std::vector<float>& b) {
  int count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]);
  return count;
}

template <int kLanes, int kRows>
int differences(bool l2norm, bool nearest_first, unsigned seed) {
  constexpr size_t kWarpRows = GdnOwner<kLanes, kRows>::kRowsPerWarp;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto drawn = [&](size_t count) {
    std::vector<float> values(count);
    for (float& v : values) v = normal(random);
    return values;
  };
  Buffers in{drawn(kWarpRows * kGdnMaxDim), drawn(kGdnMaxDim), drawn(kGdnMaxDim), drawn(kWarpRows), {}, {}, {}};
  in.state_out.resize(in.state.size());
  in.o.resize(kWarpRows);
  in.factors.resize(3 * kWarpThreads);
  Buffers spread = in, plain = in;
  kernels_on_cpu::run_block(kWarpThreads, [&] { step<kLanes, kRows>(in, l2norm, false, false, &spread); });
  kernels_on_cpu::run_block(kWarpThreads, [&] { step<kLanes, kRows>(in, l2norm, true, nearest_first, &plain); });
  return different(spread.state_out, plain.state_out) + different(spread.o, plain.o) +
         different(spread.factors, plain.factors);
}

}  // namespace

// Negative: no warp owns rows so.
extern "C" __attribute__((visibility("default"))) int gdn_sums_differences(int lanes, int rows, int l2norm,
                                                                           int nearest_first, unsigned seed) {
  const bool norm = l2norm != 0, nearest = nearest_first != 0;
  switch (100 * lanes + rows) {
    case 801: return differences<8, 1>(norm, nearest, seed);
    case 802: return differences<8, 2>(norm, nearest, seed);
    case 804: return differences<8, 4>(norm, nearest, seed);
    case 1601: return differences<16, 1>(norm, nearest, seed);
    case 1602: return differences<16, 2>(norm, nearest, seed);
    case 1604: return differences<16, 4>(norm, nearest, seed);
    case 1608: return differences<16, 8>(norm, nearest, seed);
    case 3201: return differences<32, 1>(norm, nearest, seed);
    case 3202: return differences<32, 2>(norm, nearest, seed);
    case 3204: return differences<32, 4>(norm, nearest, seed);
    case 3208: return differences<32, 8>(norm, nearest, seed);
    default: return -1;
  }
}
extern "C" __attribute__((visibility("default"))) float gdn_gate_decay(float a_log, float a, float dt_bias) {
  return gdn_decay(a_log, a, dt_bias);
}
extern "C" __attribute__((visibility("default"))) float gdn_gate_beta(float b) { return gdn_beta(b); }
