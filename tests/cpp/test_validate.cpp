// One broken thing at a time: the first rejection names the obligation that it breaks. "Row n" numbers the unsafe
// programs that an earlier validator of this kind let through.
#include <cmath>

#include "base/error.h"
#include "check.h"
#include "mini_decoder.h"
#include "validate/validate.h"

namespace {

using M = MiniDecoder;

std::string first(const amk::Judgement& j) {
  if (j.report.ok()) return "accepted";
  return "V" + amk::text("%d: ", j.report.entries()[0].code) + j.report.entries()[0].text;
}

void expect(const char* what, const amk::Program& program, int code) {
  const amk::Judgement j = amk::validate(program);
  const int got = j.report.ok() ? 0 : j.report.entries()[0].code;
  if (got != code) check::fail(what, 0, "expected V" + amk::text("%d, got ", code) + first(j));
  CHECK(j.valid.has_value() == j.report.ok());
}

struct Breakage {
  int code;
  const char* what;
  void (*apply)(M&);
};

amk_instruction_t& task(M& m, int id) { return m.program.tasks[id]; }
amk_buffer_t& buf(M& m, int id) { return m.program.buffers[id]; }
void nop(amk_instruction_t& t) {
  amk_instruction_t n{};
  n.sm = t.sm;
  n.out_counter = t.out_counter;
  n.n_waits = t.n_waits;
  for (int i = 0; i < t.n_waits; ++i) n.wait_counter[i] = t.wait_counter[i], n.wait_threshold[i] = t.wait_threshold[i];
  t = n;
}

const Breakage kBreakages[] = {
    {1, "buffer id past the table", [](M& m) { task(m, m.t_qkv).inputs[0] = 77; }},
    {1, "row 15: counter 10^9", [](M& m) { task(m, m.t_qkv).out_counter = 1000000000; }},
    {1, "row 16: counter -7", [](M& m) { task(m, m.t_next).wait_counter[0] = -7; }},
    {1, "nine inputs", [](M& m) { task(m, m.t_next).n_inputs = 9; }},
    {1, "minus one outputs", [](M& m) { task(m, m.t_next).n_outputs = -1; }},
    {1, "more waits than slots", [](M& m) { task(m, m.t_next).n_waits = 1 << 30; }},
    {1, "an id in an unused slot", [](M& m) { task(m, m.t_embed).inputs[7] = 1; }},
    {1, "a threshold in an unused slot", [](M& m) { task(m, m.t_embed).wait_threshold[3] = 1; }},
    {1, "row 32: a buffer without a binding", [](M& m) { m.program.bindings.pop_back(); }},
    {2, "dimension 0", [](M& m) { buf(m, m.x).shape[0] = 0; }},
    {2, "row 18: dimension -8", [](M& m) { buf(m, m.x).shape[0] = -8; }},
    {2, "row 19: 2^40 x 2^40", [](M& m) { buf(m, m.wo).shape[0] = buf(m, m.wo).shape[1] = int64_t{1} << 40; }},
    {2, "numel", [](M& m) { buf(m, m.x).numel = 9; }},
    {2, "stride", [](M& m) { buf(m, m.wo).stride[0] = 17; }},
    {2, "an address", [](M& m) { buf(m, m.wo).ptr = 64; }},
    {2, "pad", [](M& m) { buf(m, m.wo).pad = 1; }},
    {2, "dtype 10", [](M& m) { buf(m, m.wo).dtype = 10; }},
    {2, "rank 5", [](M& m) { buf(m, m.wo).rank = 5; }},
    {2, "rank 0", [](M& m) { buf(m, m.wo).rank = 0; }},
    {2, "shape past the rank", [](M& m) { buf(m, m.wo).shape[3] = 1; }},
    {2, "kind 7", [](M& m) { m.program.bindings[m.wo].kind = 7; }},
    {2, "space 4", [](M& m) { buf(m, m.wo).space = 4; }},
    {2, "more than the device holds", [](M& m) { m.program.pages.push_back({1, 1 << 20, int64_t{1} << 62}); }},
    {3, "unknown opcode", [](M& m) { task(m, m.t_next).op = 99; }},
    {3, "opcode without a law", [](M& m) { task(m, m.t_next).op = AMK_OP_GELU; }},
    {3, "missing output", [](M& m) { task(m, m.t_next).n_outputs = 0, task(m, m.t_next).outputs[0] = 0; }},
    {3, "row 30: i32 where bf16 is due", [](M& m) { task(m, m.t_wo).inputs[0] = m.index; }},
    {3, "unknown flag", [](M& m) { task(m, m.t_wo).params.flags |= 64; }},
    {3, "a parameter nobody asked for", [](M& m) { task(m, m.t_wo).params.group = 4; }},
    {4, "row 5: K = 2^31 - 8", [](M& m) { task(m, m.t_qkv).params.K = INT32_MAX - 7; }},
    {5, "row 5: K = 2^31 - 1, rows that no vector load can follow",
     [](M& m) { task(m, m.t_qkv).params.K = INT32_MAX; }},
    {4, "row 6: K = 0", [](M& m) { task(m, m.t_qkv).params.K = 0; }},
    {4, "row 7: K = -5", [](M& m) { task(m, m.t_qkv).params.K = -5; }},
    {4, "row 24: eps = NaN", [](M& m) { task(m, m.t_qkv).params.eps = NAN; }},
    {4, "row 25: hidden = 4096", [](M& m) { task(m, m.t_embed).params.hidden = 4096; }},
    {4, "row 26: 4096 rows of a 16-row cache", [](M& m) { task(m, m.t_attend).params.K = 4096; }},
    {4, "row 27: 7 heads on 3 kv heads",
     [](M& m) { task(m, m.t_attend).params.n_heads = 7, task(m, m.t_attend).params.n_kv_heads = 3; }},
    {4, "row 28: 0 kv heads", [](M& m) { task(m, m.t_attend).params.n_kv_heads = 0; }},
    {4, "infinite scale", [](M& m) { task(m, m.t_attend).params.scale = INFINITY; }},
    {5, "row 2: a tile past the end", [](M& m) { task(m, m.t_qkv + 1).params.n_off = 20; }},
    {5, "past the end by one", [](M& m) { task(m, m.t_head + 1).params.N_tile = 9; }},
    {5, "row 3: n_off = 2^30", [](M& m) { task(m, m.t_qkv).params.n_off = 1 << 30; }},
    {5, "row 8: 4096 elements into 8", [](M& m) { task(m, m.t_embed).params.N_tile = 4096; }},
    {5, "a vector load at half its alignment", [](M& m) { m.program.pages[0].offset += 8; }},
    {6, "row 21: a buffer larger than its page", [](M& m) { m.program.pages[1].nbytes = 16; }},
    {6, "row 22: a page that does not exist", [](M& m) { m.program.bindings[m.x].page = 99; }},
    {6, "page -2", [](M& m) { m.program.bindings[m.x].page = -2; }},
    {6, "row 23: an input on an activation's page",
     [](M& m) { m.program.bindings[m.token].page = 0, buf(m, m.token).space = AMK_SPACE_GLOBAL_SCRATCH; }},
    {6, "overlapping pages", [](M& m) { m.program.pages[1].offset = m.program.pages[0].offset + 8; }},
    {6, "page at a negative offset", [](M& m) { m.program.pages[0].offset = -256; }},
    {6, "page past 2^63", [](M& m) { m.program.pages[0] = {1, INT64_MAX, INT64_MAX}; }},
    {6, "page in HBM", [](M& m) { m.program.pages[0].space = AMK_SPACE_HBM; }},
    {6, "shared memory", [](M& m) { buf(m, m.wo).space = AMK_SPACE_SMEM; }},
    {6, "an activation without a page",
     [](M& m) { m.program.bindings[m.x].page = -1, buf(m, m.x).space = AMK_SPACE_HBM; }},
    {6, "row 12: two caches on one storage",
     [](M& m) {
       amk::Strings s;
       for (int i = 0; i < static_cast<int>(m.program.buffers.size()); ++i)
         s.push(i == m.k_cache || i == m.v_cache ? "kv" : m.program.buffer_source.at(i));
       m.program.buffer_source = s;
     }},
    {6, "weights without a source", [](M& m) { m.program.buffer_source = {}; }},
    {6, "inputs and outputs without a name", [](M& m) { m.program.buffer_name = {}; }},
    {7, "row 11: a write to the input", [](M& m) { task(m, m.t_next).outputs[0] = m.token; }},
    {8, "threshold + 1", [](M& m) { ++task(m, m.t_rope).wait_threshold[0]; }},
    {8, "threshold - 1", [](M& m) { --task(m, m.t_rope).wait_threshold[0]; }},
    {8, "threshold 0", [](M& m) { task(m, m.t_rope).wait_threshold[0] = 0; }},
    {8, "row 17: a counter that starts at 1", [](M& m) { m.program.counter_init[m.c_qkv] = 1; }},
    {8, "its own counter", [](M& m) { task(m, m.t_next).wait_counter[0] = m.c_next; }},
    {8, "a counter without producers", [](M& m) { task(m, m.t_next).wait_counter[0] = m.counter(); }},
    {8, "the same wait twice",
     [](M& m) {
       amk_instruction_t& t = task(m, m.t_next);
       t.n_waits = 2, t.wait_counter[1] = t.wait_counter[0], t.wait_threshold[1] = t.wait_threshold[0];
     }},
    {9, "swapped entries of a queue", [](M& m) { std::swap(task(m, m.t_embed), task(m, m.t_qkv)); }},
    {10, "queue = grid", [](M& m) { task(m, m.t_next).sm = 4; }},
    {10, "queue -1", [](M& m) { task(m, m.t_next).sm = -1; }},
    {10, "grid 0", [](M& m) { m.program.launch.grid = 0; }},
    {10, "more queues than SMs", [](M& m) { m.program.launch.grid = m.program.target.sm_count + 1; }},
    {10, "100 threads", [](M& m) { m.program.launch.threads_per_block = 100; }},
    {10, "2048 threads", [](M& m) { m.program.launch.threads_per_block = 2048; }},
    {10, "shared memory + 1",
     [](M& m) { m.program.launch.smem_bytes_per_block = m.program.target.smem_optin_bytes + 1; }},
    {10, "a device without memory", [](M& m) { m.program.target.hbm_bytes = 0; }},
    {10, "a device with NaN bandwidth", [](M& m) { m.program.target.hbm_gb_per_s = NAN; }},
    {11, "a needed wait dropped",
     [](M& m) { task(m, m.t_wo).n_waits = task(m, m.t_wo).wait_counter[0] = task(m, m.t_wo).wait_threshold[0] = 0; }},
    {12, "a tile again, on another queue, wider by its neighbour's rows",
     [](M& m) { task(m, m.t_qkv + 1).params.n_off = 15; }},
    {14, "row 4: a deleted tile", [](M& m) { nop(task(m, m.t_qkv)); }},
    {14, "row 9: in place over what nobody wrote", [](M& m) { task(m, m.t_wo).inputs[2] = m.h; }},
    {15, "the last task deleted", [](M& m) { nop(task(m, m.t_next)); }},
    {15, "an output written twice, in order",
     [](M& m) {
       amk_instruction_t again = task(m, m.t_next);
       again.out_counter = m.counter();
       m.program.tasks.push_back(again);
     }},
    {15, "a cache row that nobody appends",
     [](M& m) { m.buffer("kv.1.k", AMK_KIND_KV_CACHE, AMK_DTYPE_BF16, {1, 16, 8}); }},
    {16, "another buffer's bytes, in order",
     [](M& m) {
       m.program.bindings[m.q].page = m.program.bindings[m.attn].page;
       task(m, m.t_wo).inputs[0] = m.q;
     }},
    {18, "row 9: GEMV in place",
     [](M& m) {
       task(m, m.t_wo).params.K = 8, task(m, m.t_wo).inputs[0] = m.h, buf(m, m.wo) = buf(m, m.embed),
               buf(m, m.wo).shape[0] = 8, buf(m, m.wo).numel = 64;
     }},
    {19, "rows 13, 14: a position in a task", [](M& m) { task(m, m.t_append_k).params.pos = -1; }},
    {19, "row 29: kv_start = -4", [](M& m) { task(m, m.t_attend).params.kv_start = -4; }},
    {19, "kv_len", [](M& m) { task(m, m.t_attend).params.kv_len = 3; }},
    {19, "max_seq 0", [](M& m) { m.program.launch.max_seq = 0; }},
    {19, "row 13: more positions than cache rows", [](M& m) { m.program.launch.max_seq = 17; }},
    {19, "attention that does not wait for the append",
     [](M& m) {
       for (int i : {m.t_attend, m.t_attend + 1}) {
         task(m, i).n_waits = 1;
         task(m, i).wait_counter[1] = task(m, i).wait_threshold[1] = 0;
       }
     }},
    // ---- attention that turns this step's heads: as many inputs as its flags say, all of x, whole vectors ----
    {3, "raw heads without a frequency table",
     [](M& m) { m.raw_heads(), task(m, m.t_attend).n_inputs = 3, task(m, m.t_attend).inputs[3] = 0; }},
    {3, "one norm weight for q and k",
     [](M& m) { m.raw_heads(true), task(m, m.t_attend).n_inputs = 5, task(m, m.t_attend).inputs[5] = 0; }},
    {3, "head norms of turned heads",
     [](M& m) {
       amk_instruction_t& t = task(m, m.t_attend);
       t.params.flags = AMK_FLAG_NORM, t.params.eps = 1e-5f, t.n_inputs = 5, t.inputs[3] = t.inputs[4] = m.norm;
     }},
    {3, "a bias of attention", [](M& m) { m.raw_heads(), task(m, m.t_attend).params.flags |= AMK_FLAG_BIAS; }},
    {3, "eps without head norms", [](M& m) { m.raw_heads(), task(m, m.t_attend).params.eps = 1e-5f; }},
    {3, "a frequency table of bf16", [](M& m) { m.raw_heads(), task(m, m.t_attend).inputs[3] = m.norm; }},
    {3, "k_norm in f32", [](M& m) { m.raw_heads(true), task(m, m.t_attend).inputs[5] = m.inv_freq; }},
    {3, "a cache as raw heads", [](M& m) { m.raw_heads(), task(m, m.t_attend).inputs[0] = m.k_cache; }},
    {4, "a frequency table of another width",
     [](M& m) {
       m.raw_heads();
       const int wide = m.buffer("wide", AMK_KIND_CONST, AMK_DTYPE_F32, {8});
       task(m, m.t_attend).inputs[3] = wide;
     }},
    {4, "q_norm of another width", [](M& m) { m.raw_heads(true), task(m, m.t_attend).inputs[4] = m.attn; }},
    {4, "k_norm of another width", [](M& m) { m.raw_heads(true), task(m, m.t_attend).inputs[5] = m.attn; }},
    {4, "eps 0 of head norms", [](M& m) { m.raw_heads(true), task(m, m.t_attend).params.eps = 0; }},
    {4, "eps NaN of head norms", [](M& m) { m.raw_heads(true), task(m, m.t_attend).params.eps = NAN; }},
    {5, "raw q alone", [](M& m) { m.raw_heads(), task(m, m.t_attend).inputs[0] = m.q; }},
    {5, "raw v past the end", [](M& m) { m.raw_heads(), task(m, m.t_attend).params.m_off = 8; }},
    {5, "raw heads before the first element", [](M& m) { m.raw_heads(), task(m, m.t_attend).params.m_off = -8; }},
    {5, "raw heads at 2^31 - 1", [](M& m) { m.raw_heads(), task(m, m.t_attend).params.m_off = INT32_MAX; }},
    {5, "raw heads at half a vector",
     [](M& m) {
       m.raw_heads();
       const int wide = m.activation("wide", AMK_DTYPE_BF16, {40});
       for (int i : {m.t_attend, m.t_attend + 1}) task(m, i).inputs[0] = wide, task(m, i).params.m_off = 4;
     }},
    {11, "raw heads without a wait for them",
     [](M& m) {
       m.raw_heads();
       amk_instruction_t& t = task(m, m.t_attend);
       t.n_waits = t.wait_counter[0] = t.wait_threshold[0] = 0;
     }},
    {11, "raw heads that wait for the embedding alone",
     [](M& m) {
       m.raw_heads();
       task(m, m.t_attend).wait_counter[0] = m.c_embed, task(m, m.t_attend).wait_threshold[0] = 1;
     }},
    {15, "raw heads, and nobody appends the key", [](M& m) { m.raw_heads(), nop(task(m, m.t_append_k)); }},
    {21, "two steps in one launch", [](M& m) { m.program.launch.steps_per_launch = 2; }},
    {21, "another counter reset", [](M& m) { m.program.launch.counter_reset = 1; }},
    {22, "two splits in one place", [](M& m) { task(m, m.t_attend + 1).params.dim = 0; }},
    {22, "two argmax tiles in one place", [](M& m) { task(m, m.t_argmax + 1).params.dim = 0; }},
};

amk_params_t tile(int n, int n_off = 0, int m_off = 0) {
  amk_params_t p{};
  p.N_tile = n;
  p.n_off = n_off;
  p.m_off = m_off;
  return p;
}

// Eight bf16 of input, eight of output, and room for tasks between them.
struct Small : ProgramBuilder {
  int in, out;
  Small() {
    in = buffer("in", AMK_KIND_IO_INPUT, AMK_DTYPE_BF16, {8});
    out = buffer("out", AMK_KIND_IO_OUTPUT, AMK_DTYPE_BF16, {8});
  }
};

}  // namespace

TEST(a_valid_program_is_accepted) {
  M m;
  expect("mini decoder", m.program, 0);
  const amk::Judgement j = amk::validate(m.program);
  CHECK_EQ(j.valid->producers()[m.c_qkv], 2u);
  CHECK_EQ(j.valid->program().tasks.size(), m.program.tasks.size());
  CHECK_EQ(j.valid->storage().places.size(), m.program.buffers.size());
  expect("nothing at all", ProgramBuilder().program, 0);
}

TEST(each_broken_thing_is_named_by_its_obligation) {
  for (const Breakage& b : kBreakages) {
    M m;
    b.apply(m);
    expect(b.what, m.program, b.code);
  }
}

TEST(attention_of_raw_heads_needs_no_append_of_its_step) {
  for (bool with_norms : {false, true}) {
    M m;
    m.raw_heads(with_norms);
    expect("raw heads", m.program, 0);
    // Not even before it in its queue.
    amk_instruction_t append = task(m, m.t_append_k);
    append.sm = task(m, m.t_attend).sm;
    nop(task(m, m.t_append_k));
    m.program.tasks.push_back(append);
    expect("the append last", m.program, 0);
  }
  // Where one split reads row `pos` from the cache, it still waits.
  M m;
  m.raw_heads();
  amk_instruction_t& t = task(m, m.t_attend);
  t.params.flags = 0, t.inputs[0] = m.q, t.inputs[3] = 0, t.n_inputs = 3;
  t.wait_counter[0] = m.c_rope, t.wait_threshold[0] = 1;
  expect("one split over the cache", m.program, 19);
}

TEST(sentences_name_tasks_buffers_and_bytes) {
  M m;
  amk_instruction_t& t = task(m, m.t_wo);
  t.n_waits = t.wait_counter[0] = t.wait_threshold[0] = 0;
  const amk::Judgement j = amk::validate(m.program);
  const amk::Rejection& r = j.report.entries()[0];
  CHECK_EQ(r.text, amk::text("task %d (GEMV_TILE) reads bytes [0, 32) of buffer %d (attn), but task %d "
                             "(ATTENTION_COMBINE) that wrote them is not ordered before it",
                             m.t_wo, m.attn, m.t_combine));
  CHECK_EQ(r.task, m.t_wo);
  CHECK_EQ(r.buffer, m.attn);
}

// ---- four legitimate programs ----

TEST(in_place_residual_chain_is_accepted) {
  Small s;
  const int x = s.activation("x", AMK_DTYPE_BF16, {8}), c = s.counter(), d = s.counter(), e = s.counter();
  s.task(0, AMK_OP_COPY, {s.in}, {x}, tile(8), c);
  s.task(1, AMK_OP_ADD, {x, s.in}, {x}, tile(8), d, {{c, 1}});
  s.task(2, AMK_OP_MUL, {x, x}, {x}, tile(8), e, {{d, 1}});
  s.task(0, AMK_OP_COPY, {x}, {s.out}, tile(8), s.counter(), {{e, 1}});
  expect("in place", s.program, 0);
}

TEST(page_reused_after_its_last_reader_is_accepted) {
  Small s;
  const int page = s.page(16), c = s.counter(), d = s.counter(), e = s.counter();
  const int a = s.buffer("a", AMK_KIND_ACTIVATION, AMK_DTYPE_BF16, {8}, page);
  const int b = s.buffer("b", AMK_KIND_ACTIVATION, AMK_DTYPE_BF16, {8}, page);
  s.task(0, AMK_OP_COPY, {s.in}, {a}, tile(8), c);
  s.task(1, AMK_OP_COPY, {a}, {s.out}, tile(4), d, {{c, 1}});
  const int rewrite = s.task(2, AMK_OP_COPY, {s.in}, {b}, tile(8), e, {{d, 1}});
  s.task(3, AMK_OP_COPY, {b}, {s.out}, tile(4, 4), s.counter(), {{e, 1}});
  expect("reuse", s.program, 0);
  // V13: without the wait the new writer may overtake the old reader; it still follows the old writer.
  s.program.tasks[rewrite].wait_counter[0] = c;
  expect("reuse before the last reader", s.program, 13);
  // V16: ordered, but nobody writes b: its reader finds what a left there.
  s.program.tasks[rewrite].wait_counter[0] = d;
  s.program.tasks[rewrite].outputs[0] = a;
  expect("stale page", s.program, 16);
}

TEST(disjoint_tiles_on_two_counters_are_accepted) {
  Small s;
  const int x = s.activation("x", AMK_DTYPE_BF16, {8}), c = s.counter(), d = s.counter();
  s.task(0, AMK_OP_COPY, {s.in}, {x}, tile(4), c);
  const int high = s.task(1, AMK_OP_COPY, {s.in}, {x}, tile(4, 4, 4), d);
  const int reader = s.task(2, AMK_OP_COPY, {x}, {s.out}, tile(8), s.counter(), {{c, 1}, {d, 1}});
  expect("two counters", s.program, 0);
  amk::Program wide = s.program;
  wide.tasks[high].params = tile(5, 3, 3);
  expect("wider by one element", wide, 12);
  wide = s.program;
  wide.tasks[reader].n_waits = 1;
  wide.tasks[reader].wait_counter[1] = wide.tasks[reader].wait_threshold[1] = 0;
  expect("row 4: one of two joined", wide, 11);
}

TEST(queue_order_alone_carries_a_dependency) {
  Small s;
  const int x = s.activation("x", AMK_DTYPE_BF16, {8});
  s.task(0, AMK_OP_COPY, {s.in}, {x}, tile(8), s.counter());
  s.task(0, AMK_OP_COPY, {x}, {s.out}, tile(8), s.counter());
  expect("same queue", s.program, 0);
  s.program.tasks[1].sm = 1;
  expect("another queue", s.program, 11);
}

// ---- unsafe programs that need tables of their own ----

TEST(row_1_four_tasks_across_two_queues_deadlock) {
  ProgramBuilder b;
  const int cx = b.counter(), cy = b.counter(), cz = b.counter(), cw = b.counter();
  b.task(0, AMK_OP_NOP, {}, {}, {}, cx, {{cy, 1}});
  b.task(0, AMK_OP_NOP, {}, {}, {}, cw);
  b.task(1, AMK_OP_NOP, {}, {}, {}, cz, {{cw, 1}});
  b.task(1, AMK_OP_NOP, {}, {}, {}, cy);
  expect("cross-queue cycle", b.program, 9);
}

TEST(rows_10_and_11_read_only_data_is_not_written) {
  for (int kind : {AMK_KIND_WEIGHT, AMK_KIND_CONST, AMK_KIND_IO_INPUT}) {
    ProgramBuilder b;
    const int in = b.buffer("in", AMK_KIND_IO_INPUT, AMK_DTYPE_U8, {4}), w = b.buffer("w", kind, AMK_DTYPE_U8, {4});
    b.task(0, AMK_OP_COPY, {in}, {w}, tile(4), b.counter());
    expect("write to read-only", b.program, 7);
  }
}

TEST(one_task_does_not_overlap_itself) {
  Small s;
  const int x = s.activation("x", AMK_DTYPE_BF16, {8});
  s.task(0, AMK_OP_COPY, {s.in}, {x}, tile(8), s.counter());
  s.task(0, AMK_OP_COPY, {x}, {x}, tile(4, 4), s.counter());  // beside itself is fine
  s.task(0, AMK_OP_COPY, {x}, {s.out}, tile(8), s.counter());
  expect("copy within a buffer", s.program, 0);
  s.program.tasks[1].params = tile(4, 3);
  expect("copy over itself", s.program, 18);
}

TEST(row_31_thousands_of_writers_do_not_switch_checks_off) {
  Small s;
  const int x = s.activation("x", AMK_DTYPE_BF16, {8});
  for (int i = 0; i < 8001; ++i) s.task(i % 4, AMK_OP_COPY, {s.in}, {x}, tile(8), s.counter());
  s.task(0, AMK_OP_COPY, {x}, {s.out}, tile(8), s.counter());
  const amk::Judgement j = amk::validate(s.program);
  CHECK_EQ(j.report.entries().size(), size_t{AMK_MAX_REPORTED});
  CHECK(j.report.count() >= 8000);
  CHECK_EQ(j.report.entries()[0].code, 12);
}

TEST(shared_weights_must_agree) {
  M m;
  const int tied = m.buffer("head", AMK_KIND_WEIGHT, AMK_DTYPE_BF16, {16, 8}, -1, "embed");
  for (int i : {m.t_head, m.t_head + 1}) task(m, i).inputs[1] = tied;
  expect("tied head", m.program, 0);
  CHECK_EQ(amk::validate(m.program).valid->storage().places[tied].storage,
           amk::map_storage(m.program).places[m.embed].storage);
  m.buffer("other", AMK_KIND_WEIGHT, AMK_DTYPE_BF16, {16, 9}, -1, "embed");
  expect("another size", m.program, 6);
}
