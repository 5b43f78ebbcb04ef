// The rules of STATE, one broken at a time: who may touch one, where it lies, and that each of its bytes is read and
// then written once a step, by the same task.
#include "base/error.h"
#include "check.h"
#include "program_builder.h"
#include "validate/validate.h"

namespace {

constexpr int kT = AMK_DTYPE_BF16, kF = AMK_DTYPE_F32;
constexpr int kChannels = 32;  // (2 + 2) heads of 8

// A convolution in two tiles, the delta rule on two heads in two tiles, and its gated norm, on two queues.
struct Mini : ProgramBuilder {
  int x, taps, conv_state, y, a_log, dt_bias, gdn_state, o, norm, out;
  int t_conv, t_gdn, t_norm, c_conv, c_gdn, c_norm;

  Mini() : ProgramBuilder(2, 4) {
    x = buffer("x", AMK_KIND_IO_INPUT, kT, {kChannels + 16 + 4});  // q, k and v; z; b and a
    taps = buffer("taps", AMK_KIND_WEIGHT, kT, {kChannels, 4});
    conv_state = buffer("conv_state", AMK_KIND_STATE, kT, {kChannels, 3});
    a_log = buffer("a_log", AMK_KIND_WEIGHT, kF, {2});
    dt_bias = buffer("dt_bias", AMK_KIND_WEIGHT, kF, {2});
    gdn_state = buffer("gdn_state", AMK_KIND_STATE, kF, {2, 8, 8});
    norm = buffer("norm", AMK_KIND_WEIGHT, kT, {8});
    out = buffer("out", AMK_KIND_IO_OUTPUT, kT, {16});
    y = activation("y", kT, {kChannels});
    o = activation("o", kT, {16});
    c_conv = counter(), c_gdn = counter(), c_norm = counter();
    amk_params_t p{};
    p.N = kChannels, p.K = 4, p.N_tile = 16;
    t_conv = task(0, AMK_OP_CAUSAL_CONV, {x, taps, conv_state}, {y, conv_state}, p, c_conv);
    p.n_off = 16;
    task(1, AMK_OP_CAUSAL_CONV, {x, taps, conv_state}, {y, conv_state}, p, c_conv);
    p = {};
    p.n_heads = 2, p.n_kv_heads = 1, p.head_dim = 8, p.N_tile = 1, p.m_off = kChannels + 16, p.scale = 0.5f;
    p.flags = AMK_FLAG_L2_NORM, p.eps = 1e-6f;
    t_gdn = task(0, AMK_OP_GDN_DECODE, {y, x, a_log, dt_bias, gdn_state}, {o, gdn_state}, p, c_gdn, {{c_conv, 2}});
    p.n_off = 1;
    task(1, AMK_OP_GDN_DECODE, {y, x, a_log, dt_bias, gdn_state}, {o, gdn_state}, p, c_gdn, {{c_conv, 2}});
    p = {};
    p.n_heads = p.N_tile = 2, p.head_dim = 8, p.m_off = kChannels, p.eps = 1e-5f;
    t_norm = task(0, AMK_OP_GATED_RMSNORM, {o, x, norm}, {out}, p, c_norm, {{c_gdn, 2}});
  }
  amk_instruction_t& at(int t) { return program.tasks[static_cast<size_t>(t)]; }
  amk_buffer_t& buf(int b) { return program.buffers[static_cast<size_t>(b)]; }
  // Once more, by another task, after or beside everything else.
  void again(int t, bool ordered) {
    amk_instruction_t more = at(t);
    more.outputs[0] = activation("more", kT, {buf(more.outputs[0]).numel});
    more.out_counter = counter();
    more.n_waits = ordered ? 1 : 0;
    more.wait_counter[0] = ordered ? c_norm : 0;
    more.wait_threshold[0] = ordered ? 1 : 0;
    more.sm = 1;
    program.tasks.insert(ordered ? program.tasks.end() : program.tasks.begin() + 2, more);
    if (ordered) return;
    ++t_gdn, ++t_norm;
  }
};

struct Breakage {
  int code;
  const char* what;
  const char* part;
  void (*apply)(Mini&);
};

const Breakage kBreakages[] = {
    // ---- who may touch a state ----
    {3, "a copy out of a state", "is a STATE buffer; only CAUSAL_CONV and GDN_DECODE may touch a state",
     [](Mini& m) {
       amk_params_t p{};
       p.N_tile = 8;
       m.task(0, AMK_OP_COPY, {m.conv_state}, {m.activation("peek", kT, {8})}, p, m.counter());
     }},
    {3, "a copy into a state", "output 0 is a STATE buffer",
     [](Mini& m) {
       amk_params_t p{};
       p.N_tile = 8;
       m.task(0, AMK_OP_COPY, {m.x}, {m.conv_state}, p, m.counter());
     }},
    {3, "a state as the convolution's input", "input 0 is a STATE buffer",
     [](Mini& m) { m.at(m.t_conv).inputs[0] = m.conv_state; }},
    {3, "a state as the convolution's result", "output 0 is a STATE buffer",
     [](Mini& m) { m.at(m.t_conv).outputs[0] = m.conv_state; }},
    {3, "an activation as a state", "input 2 must be a STATE buffer",
     [](Mini& m) { m.at(m.t_conv).inputs[2] = m.at(m.t_conv).outputs[1] = m.activation("s", kT, {kChannels, 3}); }},
    {3, "a cache as a state", "is a KV_CACHE buffer",
     [](Mini& m) {
       m.at(m.t_gdn).inputs[4] = m.at(m.t_gdn).outputs[1] = m.buffer("kv", AMK_KIND_KV_CACHE, kF, {2, 8, 8});
     }},
    {3, "a state that is read and not written", "expected one buffer",
     [](Mini& m) { m.at(m.t_conv).outputs[1] = m.buffer("other", AMK_KIND_STATE, kT, {kChannels, 3}); }},
    {3, "a delta rule from one state to another", "expected one buffer",
     [](Mini& m) { m.at(m.t_gdn).inputs[4] = m.buffer("other", AMK_KIND_STATE, kF, {2, 8, 8}); }},
    {3, "a state of another dtype", "state has dtype bf16", [](Mini& m) { m.buf(m.gdn_state).dtype = kT; }},
    {3, "taps that a task made", "weight must be a WEIGHT",
     [](Mini& m) { m.at(m.t_conv).inputs[1] = m.activation("w", kT, {kChannels, 4}); }},
    {3, "l2 in another opcode", "flags 0x40", [](Mini& m) { m.at(m.t_norm).params.flags = AMK_FLAG_L2_NORM; }},
    {3, "1 + w in the gated norm", "flags 0x20", [](Mini& m) { m.at(m.t_norm).params.flags = AMK_FLAG_NORM_PLUS_ONE; }},
    {3, "eps without l2", "parameter eps is set", [](Mini& m) { m.at(m.t_gdn).params.flags = 0; }},
    // ---- parameters and shapes ----
    {4, "one tap", "K is 1 taps", [](Mini& m) { m.at(m.t_conv).params.K = 1; }},
    {4, "nine taps", "K is 9 taps, allowed 2..8", [](Mini& m) { m.at(m.t_conv).params.K = AMK_MAX_CONV_WIDTH + 1; }},
    {4, "fewer taps than the weight has", "weight has shape", [](Mini& m) { m.at(m.t_conv).params.K = 3; }},
    {4, "more channels than the state has", "shape", [](Mini& m) { m.at(m.t_conv).params.N = kChannels + 1; }},
    {4, "heads that are no groups", "not a multiple", [](Mini& m) { m.at(m.t_gdn).params.n_kv_heads = 3; }},
    {4, "no key heads", "n_kv_heads is 0", [](Mini& m) { m.at(m.t_gdn).params.n_kv_heads = 0; }},
    {4, "two key heads", "is 32, but", [](Mini& m) { m.at(m.t_gdn).params.n_kv_heads = 2; }},
    {4, "scale 0", "scale is 0", [](Mini& m) { m.at(m.t_gdn).params.scale = 0; }},
    {4, "eps NaN", "eps is", [](Mini& m) { m.at(m.t_gdn).params.eps = __builtin_nanf(""); }},
    {4, "wider heads", "n_heads * head_dim", [](Mini& m) { m.at(m.t_gdn).params.head_dim = 16; }},
    {4, "heads of 2^31", "n_heads * head_dim",
     [](Mini& m) {
       amk_params_t& p = m.at(m.t_norm).params;
       p.n_heads = p.head_dim = INT32_MAX;
     }},
    // ---- tiles ----
    {5, "channels past the end", "channels", [](Mini& m) { m.at(m.t_conv + 1).params.N_tile = 17; }},
    {5, "channels before the start", "channels", [](Mini& m) { m.at(m.t_conv).params.n_off = -1; }},
    {5, "x past the end", "x: elements", [](Mini& m) { m.at(m.t_conv).params.m_off = 21; }},
    {5, "heads past the end", "value heads", [](Mini& m) { m.at(m.t_gdn + 1).params.N_tile = 2; }},
    {5, "b and a past the end", "ba: elements", [](Mini& m) { ++m.at(m.t_gdn).params.m_off; }},
    {5, "z past the end", "z: elements", [](Mini& m) { m.at(m.t_norm).params.m_off = kChannels + 5; }},
    {5, "heads of 4 bf16", "no multiple of 16 bytes",
     [](Mini& m) {
       amk_params_t& p = m.at(m.t_gdn).params;
       p.head_dim = 4;
     }},
    // ---- where it lies ----
    {6, "a state on a page", "is on page",
     [](Mini& m) {
       m.program.bindings[m.gdn_state].page = m.page(512);
       m.buf(m.gdn_state).space = AMK_SPACE_GLOBAL_SCRATCH;
     }},
    {6, "two states on one storage", "share one source",
     [](Mini& m) {
       const int a = m.buffer("a", AMK_KIND_STATE, kT, {kChannels, 3}, -1, "one");
       const int b = m.buffer("b", AMK_KIND_STATE, kT, {kChannels, 3}, -1, "one");
       m.at(m.t_conv).inputs[2] = m.at(m.t_conv).outputs[1] = a;
       m.at(m.t_conv + 1).inputs[2] = m.at(m.t_conv + 1).outputs[1] = b;
     }},
    {6, "a state without a name", "without a name", [](Mini& m) { m.buffer("", AMK_KIND_STATE, kT, {kChannels, 3}); }},
    {6, "two states of one name", "has the name of",
     [](Mini& m) { m.buffer("conv_state", AMK_KIND_STATE, kT, {kChannels, 3}); }},
    // ---- once a step ----
    {15, "a state that nobody moves on", "never written",
     [](Mini& m) { m.buffer("idle", AMK_KIND_STATE, kT, {8, 3}); }},
    {15, "a tile of a state left out", "bytes [256, 512) of buffer 5 (gdn_state) are never written",
     [](Mini& m) {
       // The second head's result, but not its state.
       amk_params_t p{};
       p.N_tile = p.n_off = p.m_off = 8;
       amk_instruction_t& t = m.at(m.t_gdn + 1);
       const amk_instruction_t old = t;
       t = m.at(m.task(1, AMK_OP_COPY, {m.y}, {m.o}, p, old.out_counter, {{m.c_conv, 2}}));
       m.program.tasks.pop_back();
     }},
    {19, "a state moved on twice, one after the other", "a state is read by whoever replaces it alone",
     [](Mini& m) { m.again(m.t_conv, true); }},
    {19, "a state moved on twice, unordered", "a state is read by whoever replaces it alone",
     [](Mini& m) { m.again(m.t_conv, false); }},
    {19, "the delta rule twice", "(gdn_state), but task", [](Mini& m) { m.again(m.t_gdn, true); }},
    {19, "tiles of a state that overlap", "a state is read by whoever replaces it alone",
     [](Mini& m) {
       amk_instruction_t& t = m.at(m.t_conv + 1);
       --t.params.n_off, ++t.params.N_tile;
     }},
};

std::string all_of(const amk::Judgement& j) {
  std::string out;
  for (const amk::Rejection& r : j.report.entries()) out += amk::text("V%d: ", r.code) + r.text + "\n";
  return out.empty() ? "accepted" : out;
}

}  // namespace

TEST(the_unbroken_program_is_accepted) {
  CHECK_EQ(all_of(amk::validate(Mini().program)), "accepted");
  Mini other_order;  // whole tiles may come in any order, on any queue
  for (amk_instruction_t& t : other_order.program.tasks) t.sm = 1 - t.sm;
  std::swap(other_order.program.tasks[0], other_order.program.tasks[1]);
  CHECK_EQ(all_of(amk::validate(other_order.program)), "accepted");
}

TEST(each_broken_rule_of_states_is_named) {
  for (const Breakage& b : kBreakages) {
    Mini m;
    b.apply(m);
    const amk::Judgement j = amk::validate(m.program);
    const int got = j.report.ok() ? 0 : j.report.entries()[0].code;
    if (got != b.code || j.report.entries()[0].text.find(b.part) == std::string::npos)
      check::fail(b.what, 0, amk::text("expected V%d and \"%s\", got ", b.code, b.part) + all_of(j));
    CHECK(j.valid.has_value() == j.report.ok());
  }
}

// The second reader is refused whatever the order; without one, its write is a race as well, and at the end of the step
// the bytes were written twice.
TEST(a_second_reader_of_a_state_breaks_three_rules) {
  Mini m;
  m.again(m.t_conv, false);
  int codes[27] = {};
  const amk::Judgement j = amk::validate(m.program);
  for (const amk::Rejection& r : j.report.entries()) ++codes[r.code];
  CHECK(codes[19] && codes[12] && codes[15]);
}

// A state is no output: what an earlier step left there may be read without a writer in this one.
TEST(a_state_needs_no_writer_before_its_reader) {
  Mini m;
  for (int t : {m.t_conv, m.t_conv + 1}) CHECK_EQ(m.at(t).n_waits, 0);
  CHECK(amk::validate(m.program).valid.has_value());
}
