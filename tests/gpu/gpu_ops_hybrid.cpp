// The opcodes of a hybrid layer, for gpu_ops: smallest and odd sizes, tiles that start anywhere, each flag, and several
// steps over one state, which is compared after each.
#include "gpu_op_cases.h"

namespace gpu_test {
namespace {

void causal_conv() {
  Line line("CAUSAL_CONV");
  for (int32_t dtype : kTypes) {
    for (int32_t width : {2, 3, 4, AMK_MAX_CONV_WIDTH}) {
      for (int32_t channels : {1, 9, 640, 1500}) {
        if (few && !(channels == 9 && width == 4)) continue;
        Sketch s;
        const int32_t x = s.input("x", dtype, {channels + 8}), w = s.weight("w", dtype, {channels, width}),
                      state = s.state("state", dtype, {channels, width - 1}), y = s.output("y", dtype, {channels});
        for (auto [at, n] : cuts(channels)) {
          amk_params_t p{};
          p.K = width;
          p.N = channels;
          p.N_tile = n;
          p.n_off = at;
          p.m_off = 8;
          s.task(AMK_OP_CAUSAL_CONV, {x, w, state}, {y, state}, p);
        }
        check(line, amk::text("%s %d channels, %d taps", amk::dtype_name(dtype), channels, width), s,
              one_rounding(dtype), {}, {}, 0.1);
      }
    }
  }
}

void gdn_decode() {
  Line line("GDN_DECODE");
  struct Net {
    int32_t key_heads, value_heads, dim;
  };
  for (int32_t dtype : kTypes) {
    for (Net net : {Net{1, 1, 8}, Net{1, 2, 16}, Net{2, 6, 24}, Net{3, 3, 48}, Net{2, 4, 64}, Net{4, 8, 80},
                    Net{4, 8, 128}, Net{1, 9, 112}, Net{16, 32, 128}}) {
      for (int32_t flags : {0, static_cast<int32_t>(AMK_FLAG_L2_NORM)}) {
        if (few && net.dim != 80) continue;
        const int32_t channels = (2 * net.key_heads + net.value_heads) * net.dim;
        Sketch s;
        const int32_t qkv = s.input("qkv", dtype, {channels}), ba = s.input("ba", dtype, {2 * net.value_heads + 8}),
                      a_log = s.constant("a_log", {net.value_heads}), bias = s.constant("dt_bias", {net.value_heads}),
                      state = s.state("state", AMK_DTYPE_F32, {net.value_heads, net.dim, net.dim}),
                      o = s.output("o", dtype, {net.value_heads * net.dim});
        for (auto [at, n] : cuts(net.value_heads)) {
          amk_params_t p{};
          p.n_heads = net.value_heads;
          p.n_kv_heads = net.key_heads;
          p.head_dim = net.dim;
          p.N_tile = n;
          p.n_off = at;
          p.m_off = 8;
          // Raw k of uniform elements: |k|^2 = dim / 3, so a step without l2-norm grows S by up to that.
          p.scale = 1.0f / std::sqrt(static_cast<float>(net.dim));
          p.flags = flags;
          if (flags) p.eps = 1e-6f;
          s.task(AMK_OP_GDN_DECODE, {qkv, ba, a_log, bias, state}, {o, state}, p);
        }
        // Without the norm the recurrence is unstable: one step.
        const std::vector<int32_t> positions = flags ? std::vector<int32_t>{0, 1, 17, 1023} : std::vector<int32_t>{5};
        check(line,
              amk::text("%s heads %d/%d of %d, flags %d", amk::dtype_name(dtype), net.key_heads, net.value_heads,
                        net.dim, flags),
              s, one_rounding(dtype), few && !flags ? std::vector<int32_t>{5} : positions, {}, 0.1);
      }
    }
  }
}

void gated_rmsnorm() {
  Line line("GATED_RMSNORM");
  for (int32_t dtype : kTypes) {
    for (int32_t dim : {1, 16, 77, 128}) {
      for (int32_t heads : {1, 9, 40}) {
        if (few && !(dim == 77 && heads == 9)) continue;
        Sketch s;
        const int32_t x = s.input("x", dtype, {heads * dim}), z = s.input("z", dtype, {heads * dim + 8}),
                      w = s.weight("norm", dtype, {dim}), y = s.output("y", dtype, {heads * dim});
        for (auto [at, n] : cuts(heads)) {
          amk_params_t p{};
          p.n_heads = heads;
          p.head_dim = dim;
          p.N_tile = n;
          p.n_off = at;
          p.m_off = 8;
          p.eps = 1e-6f;
          s.task(AMK_OP_GATED_RMSNORM, {x, z, w}, {y}, p);
        }
        check(line, amk::text("%s %d heads of %d", amk::dtype_name(dtype), heads, dim), s, one_rounding(dtype));
      }
    }
  }
}

void sigmoid_mul() {
  Line line("SIGMOID_MUL");
  for (int32_t dtype : kTypes) {
    for (int32_t count : {1, 9, 512, 4099}) {
      if (few && count != 9) continue;
      Sketch s;
      const int32_t a = s.input("a", dtype, {count}), b = s.input("b", dtype, {count + 3}),
                    y = s.output("y", dtype, {count});
      for (auto [at, n] : cuts(count)) {
        amk_params_t p{};
        p.n_off = at;
        p.m_off = 3;
        p.N_tile = n;
        s.task(AMK_OP_SIGMOID_MUL, {a, b}, {y}, p);
      }
      check(line, amk::text("%s %d", amk::dtype_name(dtype), count), s, one_rounding(dtype));
    }
  }
}

}  // namespace

void hybrid_ops() {
  causal_conv();
  gdn_decode();
  gated_rmsnorm();
  sigmoid_mul();
}

}  // namespace gpu_test
