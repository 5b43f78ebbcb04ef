// The placement pass by itself, on orders of ops that no decoder has; and the judge against edges taken away.
#include "base/dtype.h"
#include "lower/passes.h"
#include "lower_models.h"
#include "validate/validate.h"

using namespace amk;

namespace {

// A plan whose ops only have buffers: place() looks at nothing else.
struct Sketch {
  Plan plan;
  OpGraph order;

  int32_t buffer(int64_t elements) {
    plan.program.buffers.push_back(make_buffer(AMK_DTYPE_F32, AMK_SPACE_GLOBAL_SCRATCH, {elements}));
    plan.program.bindings.push_back({AMK_KIND_ACTIVATION, -1});
    order.uses.emplace_back();
    return static_cast<int32_t>(order.uses.size()) - 1;
  }
  void op(std::initializer_list<int32_t> reads, std::initializer_list<int32_t> writes) {
    const int32_t id = static_cast<int32_t>(plan.ops.size());
    plan.ops.push_back({id, 1});
    order.preds.emplace_back();
    for (int32_t b : reads) {
      order.preds[id].push_back(order.uses[b].writers.back());
      order.uses[b].readers.push_back(id);
    }
    for (int32_t b : writes) order.uses[b].writers.push_back(id);
  }
  int32_t page(int32_t b) const { return plan.program.bindings[b].page; }
};

// `readers` ops read one small buffer, and what they write lives to the end; the op `*taker` writes another small
// buffer, which could have the page of the first once all readers are done.
Sketch fan_out(int readers, int32_t* first, int32_t* second, int32_t* taker) {
  Sketch s;
  *first = s.buffer(64);
  s.op({}, {*first});
  std::vector<int32_t> results;
  for (int i = 0; i < readers; ++i) {
    results.push_back(s.buffer(4096));
    s.op({*first}, {results.back()});
  }
  *second = s.buffer(64);
  *taker = static_cast<int32_t>(s.plan.ops.size());
  s.op({results.back()}, {*second});
  for (int32_t result : results) s.op({result}, {s.buffer(16384)});
  return s;
}

}  // namespace

TEST(reuse_waits_for_every_reader_of_the_page) {
  for (int32_t policy : {AMK_PAGES_LINEAR, AMK_PAGES_GRAPH_COLOR}) {
    int32_t first = 0, second = 0, taker = 0;
    Sketch s = fan_out(AMK_MAX_WAITS, &first, &second, &taker);
    place(s.plan, s.order, policy);
    CHECK_EQ(s.page(first), s.page(second));
    CHECK_EQ(s.order.preds[taker].size(), size_t{AMK_MAX_WAITS});
  }
}

TEST(a_page_is_not_reused_when_that_needs_too_many_waits) {
  for (int32_t policy : {AMK_PAGES_LINEAR, AMK_PAGES_GRAPH_COLOR}) {
    int32_t first = 0, second = 0, taker = 0;
    Sketch s = fan_out(AMK_MAX_WAITS + 1, &first, &second, &taker);
    place(s.plan, s.order, policy);
    CHECK(s.page(first) != s.page(second));
    CHECK_EQ(s.order.preds[taker].size(), 1u);
    for (size_t b = 0; b < s.order.uses.size(); ++b) {
      const amk_page_t& page = s.plan.program.pages.at(s.page(static_cast<int32_t>(b)));
      CHECK(page.nbytes >= storage_bytes(AMK_DTYPE_F32, s.plan.program.buffers[b].numel));
    }
  }
}

TEST(linear_takes_the_first_page_that_is_free_and_large_enough) {
  Sketch s;
  const int32_t small = s.buffer(64), large = s.buffer(1024), late = s.buffer(1024), tiny = s.buffer(8);
  s.op({}, {small});
  s.op({small}, {large});
  s.op({large}, {late});
  s.op({late}, {tiny});
  place(s.plan, s.order, AMK_PAGES_LINEAR);
  CHECK_EQ(s.page(small), 0);
  CHECK_EQ(s.page(large), 1);
  CHECK_EQ(s.page(late), 2);  // page 0 is free but too small; an op never writes the page it reads
  CHECK_EQ(s.page(tiny), 0);
}

TEST(linear_prefers_a_page_that_costs_no_wait) {
  Sketch s;
  const int32_t qkv = s.buffer(64), part = s.buffer(64), row = s.buffer(4096), attended = s.buffer(64),
                mid = s.buffer(64);
  s.op({}, {qkv});
  s.op({qkv}, {part});
  s.op({part}, {attended});
  s.op({qkv}, {row});  // an append: on nobody's way
  s.op({attended}, {mid});
  const int32_t act = s.buffer(64), late = s.buffer(64);
  s.op({mid}, {act});
  s.op({act, row}, {late});
  place(s.plan, s.order, AMK_PAGES_LINEAR);
  CHECK_EQ(s.page(mid), s.page(part));  // not that of qkv, which comes first and is free
  CHECK_EQ(s.order.preds[4].size(), 1u);
  CHECK_EQ(s.page(act), s.page(attended));
  CHECK_EQ(s.page(late), s.page(qkv));  // here the append comes before it anyway
}

TEST(colors_go_to_the_largest_buffer_first) {
  Sketch s;
  const int32_t small = s.buffer(64), large = s.buffer(4096), middle = s.buffer(1024);
  s.op({}, {small});
  s.op({small}, {large});
  s.op({large}, {middle});
  place(s.plan, s.order, AMK_PAGES_GRAPH_COLOR);
  CHECK_EQ(s.page(large), 0);
  CHECK_EQ(s.page(middle), 1);
  CHECK_EQ(s.page(small), 1);
  CHECK_EQ(s.plan.program.pages[1].nbytes, 4096);
}

// Waits of one op are irreducible, so each task that loses one must be refused; only a queue of its own producers could
// make up for it, and an op whose producers all stand on one SM is skipped. How many waits were dropped.
static int drop_each_wait(const Program& lowered) {
  std::vector<int32_t> producers(lowered.counter_init.size(), 0), sm_of(lowered.counter_init.size(), 0);
  for (const amk_instruction_t& t : lowered.tasks) {
    ++producers[t.out_counter];
    sm_of[t.out_counter] = t.sm;
  }
  int dropped = 0;
  for (size_t i = 0; i < lowered.tasks.size(); ++i)
    for (int32_t w = 0; w < lowered.tasks[i].n_waits; ++w) {
      const int32_t counter = lowered.tasks[i].wait_counter[w];
      if (producers[counter] == 1 && sm_of[counter] == lowered.tasks[i].sm) continue;
      Program mutant = lowered;
      amk_instruction_t& t = mutant.tasks[i];
      const int32_t last = --t.n_waits;
      t.wait_counter[w] = t.wait_counter[last];
      t.wait_threshold[w] = t.wait_threshold[last];
      t.wait_counter[last] = t.wait_threshold[last] = 0;
      ++dropped;
      const bool accepted = validate(std::move(mutant)).report.ok();
      // An earlier task of the same queue may already have seen the same counter.
      bool seen_before = false;
      for (size_t j = 0; j < i; ++j)
        for (int32_t v = 0; v < lowered.tasks[j].n_waits && lowered.tasks[j].sm == lowered.tasks[i].sm; ++v)
          seen_before |= lowered.tasks[j].wait_counter[v] == counter;
      CHECK(!accepted || seen_before);
    }
  return dropped;
}

TEST(no_wait_of_a_lowering_can_be_dropped) {
  // A page goes on as a whole, so what takes the page of qkv waits for the appends that come after attention of raw
  // heads even where it writes none of the bytes that they read: that fusion goes without reuse here.
  amk_schedule_t reuse = default_schedule(), raw = reuse;
  reuse.fusion &= ~AMK_FUSE_ROPE_ATTENTION;
  raw.page_policy = AMK_PAGES_NONE;
  for (const amk_schedule_t& s : {reuse, raw})
    CHECK(drop_each_wait(lower_model(small_models()[2], s, small_target(8))) > 80);
}
