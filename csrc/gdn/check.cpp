#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "base/checked.h"
#include "base/dtype.h"
#include "base/error.h"
#include "gdn/gdn.h"

namespace amk {
namespace {

constexpr int kMaxDims = 4;

// One operand as its bytes lie.
struct Operand {
  const char* name;
  const void* data;
  int32_t dtype;
  int rank;
  int64_t shape[kMaxDims], stride[kMaxDims];
  uintptr_t begin = 0, end = 0;  // bytes touched lie in [begin, end)
};

Operand operand(const char* name, const void* data, int32_t dtype, std::initializer_list<int64_t> shape,
                std::initializer_list<int64_t> stride) {
  Operand o{name, data, dtype, static_cast<int>(shape.size()), {}, {}};
  std::copy(shape.begin(), shape.end(), o.shape);
  std::copy(stride.begin(), stride.end(), o.stride);
  return o;
}

void check_layout(Operand& o) {
  AMK_CHECK(o.data, AMK_ERR_INVALID_ARGUMENT, "gdn_decode: %s is NULL", o.name);
  const int64_t element_bytes = dtype_bits(o.dtype) / 8;
  const uintptr_t at = reinterpret_cast<uintptr_t>(o.data);
  AMK_CHECK(at % static_cast<uintptr_t>(element_bytes) == 0, AMK_ERR_INVALID_ARGUMENT,
            "gdn_decode: %s: expected an address that is a multiple of %lld, got %p", o.name, (long long)element_bytes,
            o.data);
  int64_t last = 0, nbytes = 0;
  for (int d = 0; d < o.rank; ++d) {
    AMK_CHECK(o.stride[d] >= 0, AMK_ERR_INVALID_ARGUMENT, "gdn_decode: %s: stride %d is %lld, expected 0 or more",
              o.name, d, (long long)o.stride[d]);
    int64_t step = 0;
    AMK_CHECK(checked_mul(o.shape[d] - 1, o.stride[d], &step) && checked_add(last, step, &last),
              AMK_ERR_INVALID_ARGUMENT, "gdn_decode: %s: stride %d is %lld, which leaves the address space", o.name, d,
              (long long)o.stride[d]);
  }
  AMK_CHECK(checked_add(last, 1, &last) && checked_mul(last, element_bytes, &nbytes) &&
                static_cast<uint64_t>(nbytes) <= UINTPTR_MAX - at,
            AMK_ERR_INVALID_ARGUMENT, "gdn_decode: %s: %lld elements at %p leave the address space", o.name,
            (long long)last, o.data);
  o.begin = at;
  o.end = at + static_cast<uintptr_t>(nbytes);
}

// No element of an output lies where another one does.
void check_distinct(const Operand& o) {
  // Dimensions by rising stride, those of one entry left out: each must step over the whole of those before it.
  bool seen[kMaxDims] = {};
  int64_t reached = 0;
  for (int i = 0; i < o.rank; ++i) {
    int next = -1;
    for (int d = 0; d < o.rank; ++d)
      if (!seen[d] && o.shape[d] > 1 && (next < 0 || o.stride[d] < o.stride[next])) next = d;
    if (next < 0) return;
    seen[next] = true;
    AMK_CHECK(o.stride[next] > reached, AMK_ERR_INVALID_ARGUMENT,
              "gdn_decode: %s: stride %d is %lld, so elements share memory: expected more than %lld", o.name, next,
              (long long)o.stride[next], (long long)reached);
    reached += (o.shape[next] - 1) * o.stride[next];
  }
}

void check_state(const Operand& o) {
  AMK_CHECK(o.begin % AMK_VECTOR_BYTES == 0, AMK_ERR_INVALID_ARGUMENT,
            "gdn_decode: %s: expected an address that is a multiple of %d, got %p", o.name, AMK_VECTOR_BYTES, o.data);
  constexpr int kPerVector = AMK_VECTOR_BYTES / static_cast<int>(sizeof(float));
  for (int d = 0; d < 3; ++d)
    AMK_CHECK(o.stride[d] % kPerVector == 0, AMK_ERR_INVALID_ARGUMENT,
              "gdn_decode: %s: stride %d is %lld, expected a multiple of %d elements", o.name, d,
              (long long)o.stride[d], kPerVector);
}

bool overlap(const Operand& a, const Operand& b) { return a.begin < b.end && b.begin < a.end; }

void check_dtype(const char* what, int32_t dtype) {
  AMK_CHECK(is_compute_dtype(dtype), AMK_ERR_UNSUPPORTED, "gdn_decode: %s is %s, expected f32, f16 or bf16", what,
            dtype_name(dtype));
}

}  // namespace

void check_gdn_decode(const amk_gdn_decode_t& g) {
  const auto in_range = [](const char* what, int32_t value, int32_t largest) {
    AMK_CHECK(value >= 1 && value <= largest, AMK_ERR_INVALID_ARGUMENT, "gdn_decode: %s is %d, expected 1..%d", what,
              value, largest);
  };
  AMK_CHECK(g.device >= -1, AMK_ERR_INVALID_ARGUMENT, "gdn_decode: device is %d, expected -1 (host) or an index",
            g.device);
  in_range("batch", g.batch, AMK_MAX_GDN_BATCH);
  in_range("value_heads", g.value_heads, AMK_MAX_GDN_HEADS);
  in_range("key_heads", g.key_heads, AMK_MAX_GDN_HEADS);
  AMK_CHECK(g.value_heads % g.key_heads == 0, AMK_ERR_INVALID_ARGUMENT,
            "gdn_decode: value_heads is %d, expected a multiple of key_heads, which is %d", g.value_heads, g.key_heads);
  AMK_CHECK(g.head_dim == kGdnHeadDim, AMK_ERR_UNSUPPORTED, "gdn_decode: head_dim is %d, expected %d", g.head_dim,
            kGdnHeadDim);
  check_dtype("dtype", g.dtype);
  check_dtype("gate_dtype", g.gate_dtype);
  check_dtype("bias_dtype", g.bias_dtype);
  AMK_CHECK(g.l2norm == 0 || g.l2norm == 1, AMK_ERR_INVALID_ARGUMENT, "gdn_decode: l2norm is %d, expected 0 or 1",
            g.l2norm);
  AMK_CHECK(std::isfinite(g.scale), AMK_ERR_INVALID_ARGUMENT, "gdn_decode: scale is %g, expected a finite number",
            static_cast<double>(g.scale));

  const int64_t B = g.batch, Q = g.key_heads, V = g.value_heads, D = g.head_dim;
  const auto vector = [&](const char* name, const void* p, int64_t heads, const int64_t (&s)[3]) {
    return operand(name, p, g.dtype, {B, heads, D}, {s[0], s[1], s[2]});
  };
  const auto gate = [&](const char* name, const void* p, const int64_t (&s)[2]) {
    return operand(name, p, g.gate_dtype, {B, V}, {s[0], s[1]});
  };
  const auto state = [&](const char* name, const void* p, const int64_t (&s)[3]) {
    return operand(name, p, AMK_DTYPE_F32, {B, V, D, D}, {s[0], s[1], s[2], 1});
  };
  Operand inputs[] = {vector("q", g.q, Q, g.q_stride),
                      vector("k", g.k, Q, g.k_stride),
                      vector("v", g.v, V, g.v_stride),
                      gate("a", g.a, g.a_stride),
                      gate("b", g.b, g.b_stride),
                      operand("a_log", g.a_log, AMK_DTYPE_F32, {V}, {1}),
                      operand("dt_bias", g.dt_bias, g.bias_dtype, {V}, {1}),
                      state("state_in", g.state_in, g.state_in_stride)};
  Operand state_out = state("state_out", g.state_out, g.state_out_stride);
  Operand out = vector("out", g.out, V, g.out_stride);
  for (Operand& o : inputs) check_layout(o);
  check_layout(state_out);
  check_layout(out);
  const Operand& state_in = inputs[7];
  check_state(state_in);
  check_state(state_out);
  check_distinct(state_out);
  check_distinct(out);

  const auto disjoint = [](const Operand& a, const Operand& b) {
    AMK_CHECK(!overlap(a, b), AMK_ERR_INVALID_ARGUMENT,
              "gdn_decode: %s and %s overlap: [%#llx, %#llx) and [%#llx, %#llx)", a.name, b.name,
              (unsigned long long)a.begin, (unsigned long long)a.end, (unsigned long long)b.begin,
              (unsigned long long)b.end);
  };
  for (const Operand& o : inputs) disjoint(out, o);
  disjoint(out, state_out);
  for (const Operand& o : inputs)
    if (&o != &state_in) disjoint(state_out, o);
  const bool is_in_place =
      g.state_in == g.state_out && std::equal(g.state_in_stride, g.state_in_stride + 3, g.state_out_stride);
  if (!is_in_place) disjoint(state_out, state_in);
}

}  // namespace amk
