// The opcode GDN_DECODE (cuda/gdn_head.cuh), a block of the tasks' threads for each value head.
// In: the tensors of one task, in its law's order; widths and flags. Out: o and the new state.
#include "gdn_head.cuh"

namespace {

struct Context {
  amk::DeviceTask task{};

  const amk_params_t& params() const { return task.params; }
  template <class T>
  const T* in(int slot) const {
    return static_cast<const T*>(task.in[slot]);
  }
  template <class T>
  T* out(int slot) const {
    return static_cast<T*>(task.out[slot]);
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void gdn_opcode(int dtype, int dim, int value_heads, int key_heads,
                                                                  int l2norm, float scale, float eps,
                                                                  const void* const (&in)[5], void* const (&out)[2]) {
  constexpr int kThreads = 256;
  Context c;
  for (int i = 0; i < 5; ++i) c.task.in[i] = in[i];
  for (int i = 0; i < 2; ++i) c.task.out[i] = out[i];
  c.task.dtype = dtype;
  amk_params_t& p = c.task.params;
  p.head_dim = dim;
  p.n_heads = value_heads;
  p.n_kv_heads = key_heads;
  p.scale = scale;
  p.eps = eps;
  p.flags = l2norm ? AMK_FLAG_L2_NORM : 0;
  for (int h = 0; h < value_heads; ++h) {
    kernels_on_cpu::run_block(kThreads, [&] {
      amk::GdnHead<kThreads, Context> head(c, h);
      head.load_state();
      head.step();
    });
  }
}
