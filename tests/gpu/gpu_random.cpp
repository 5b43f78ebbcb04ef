// Every value of every knob of the schedule, in 20 random configurations of random small models each: the result is the
// reference machine's, or the configuration is REJECTED before a launch. Needs a GPU.
// In: trials=N, seed=N. Out: one line per value. A hang is the caller's to notice (run.py has a limit).
#include <cstdio>

#include "gpu_pair.h"

using namespace gpu_test;

namespace {

int trials = 20;

int32_t pick(Random& r, std::initializer_list<int32_t> values) {
  return values.begin()[r.next() % static_cast<uint64_t>(values.size())];
}

amk_model_t random_model(Random& r) {
  const int32_t dim = pick(r, {8, 16, 32, 64, 128}), kv_heads = pick(r, {1, 2, 3, 4}), group = pick(r, {1, 2, 3, 4});
  return model(pick(r, {AMK_DTYPE_F32, AMK_DTYPE_F16, AMK_DTYPE_BF16}), pick(r, {1, 2}),
               8 * (1 + static_cast<int32_t>(r.next() % 40)), kv_heads * group, kv_heads, dim,
               8 * (1 + static_cast<int32_t>(r.next() % 60)), 10 + static_cast<int32_t>(r.next() % 1200),
               pick(r, {1, 64, 200, 257, 512}), static_cast<int32_t>(r.next() % 32));
}

struct Config {
  amk_schedule_t schedule = amk::default_schedule();
  int32_t sms = 1, launch_threads = 0;  // launch_threads: set in the program, past the schedule's own check
};

// The ring, and its knobs as they stand by default.
void with_ring(Config& c) {
  const amk_schedule_t standard = amk::default_schedule();
  c.schedule.cpasync = 1;
  c.schedule.pipelining_depth = standard.pipelining_depth;
  c.schedule.cpa_stages = standard.cpa_stages;
}

Config random_config(Random& r) {
  Config c;
  c.schedule.gemv_n_tile = pick(r, {0, 8, 16, 24, 64, 200, 512, 8192});
  c.schedule.attention_kv_block = pick(r, {16, 32, 48, 64, 128, 256, 1024, 16384});
  c.schedule.fusion = static_cast<int32_t>(r.next() % 256);
  c.schedule.sm_policy = pick(r, {AMK_SM_ROUND_ROBIN, AMK_SM_LOAD_BALANCE});
  c.schedule.page_policy = pick(r, {AMK_PAGES_NONE, AMK_PAGES_LINEAR, AMK_PAGES_GRAPH_COLOR});
  c.sms = pick(r, {1, 2, 5, 17, 64, 132});
  c.schedule.cpasync = pick(r, {0, 1, 1, 1});
  if (c.schedule.cpasync) {
    c.schedule.pipelining_depth = pick(r, {1, 2, 5, 6, 8});
    c.schedule.cpa_stages = pick(r, {0, 1, 2});
  }
  return c;
}

// The explicit map needs the number of tasks, which the lowering knows: any SM for any task.
Bytes build(const amk_model_t& m, Config c, Random& r) {
  const amk_target_t target = h200(c.sms);
  std::vector<int32_t> task, sm;
  if (c.schedule.sm_policy == AMK_SM_EXPLICIT) {
    amk_schedule_t first = c.schedule;
    first.sm_policy = AMK_SM_ROUND_ROBIN;
    const size_t count = amk::lower(amk::build_decoder(m), first, target).tasks.size();
    for (size_t i = 0; i < count; ++i) {
      task.push_back(static_cast<int32_t>(i));
      sm.push_back(static_cast<int32_t>(r.next() % static_cast<uint64_t>(c.sms)));
    }
    c.schedule.sm_map_count = static_cast<int64_t>(count);
    c.schedule.sm_map_task = task.data();
    c.schedule.sm_map_sm = sm.data();
  }
  amk::check_schedule(c.schedule, target);
  amk::Program program = amk::lower(amk::build_decoder(m), c.schedule, target);
  if (c.launch_threads) program.launch.threads_per_block = c.launch_threads;
  amk::Judgement j = amk::validate(std::move(program));
  if (!j.valid) {
    const amk::Rejection& e = j.report.entries().front();
    throw amk::Error(AMK_ERR_REJECTED, amk::text("V%d: %s", e.code, e.text.c_str()));
  }
  return amk::pack(*j.valid).shared_bytes();
}

// The largest error over the limit of its type: at most 1 is right.
double judge(const amk_model_t& m, Pair& p, Random& r) {
  double worst = 0;
  for (int32_t pos : {0, static_cast<int32_t>(r.next() % static_cast<uint64_t>(m.max_seq)), m.max_seq - 1}) {
    p.token(static_cast<int32_t>(r.next() % static_cast<uint64_t>(m.vocab)));
    p.reference->run(pos);
    p.gpu->run(pos);
    for (size_t b = 0; b < p.image.buffers.size(); ++b) {
      const int32_t kind = p.image.bindings[b].kind, dtype = p.image.buffers[b].dtype;
      if ((kind != AMK_KIND_IO_OUTPUT && kind != AMK_KIND_KV_CACHE) || dtype == AMK_DTYPE_I32) continue;
      const std::string name(p.image.buffer_name.at(b));
      const auto x = read_buffer(*p.gpu, p.image, name), y = read_buffer(*p.reference, p.image, name);
      worst = std::max(worst, error_of(dtype, x.data(), y.data(), p.image.buffers[b].numel) / limit_of(m.dtype));
    }
  }
  return worst;
}

// `built`: at least one configuration must run. Otherwise all must be refused.
void value(const std::string& name, bool built, uint64_t seed, void (*set)(Config&, int32_t), int32_t v) {
  int right = 0, refused = 0;
  double worst = 0;
  std::string wrong, reason;
  for (int i = 0; i < trials; ++i) {
    Random r{seed + static_cast<uint64_t>(i) * 1000003};
    const amk_model_t m = random_model(r);
    Config c = random_config(r);
    set(c, v);
    std::unique_ptr<Pair> p;
    try {
      p = std::make_unique<Pair>(build(m, c, r), 1);
    } catch (const amk::Error& e) {
      refused += e.status() == AMK_ERR_REJECTED;
      reason = e.what();
      if (e.status() != AMK_ERR_REJECTED) wrong = amk::text("trial %d: %d ", i, e.status()) + e.what();
      continue;
    }
    try {
      const double error = judge(m, *p, r);
      worst = std::max(worst, error);
      right += error <= 1;
      if (!(error <= 1))
        wrong = amk::text(
            "trial %d: error %.2g of the limit (%s hidden %d heads %d/%d x %d ffn %d vocab %d features %d)", i, error,
            amk::dtype_name(m.dtype), m.hidden, m.n_heads, m.n_kv_heads, m.head_dim, m.ffn, m.vocab, m.features);
    } catch (const amk::Error& e) {
      wrong = amk::text("trial %d: after it was accepted: %d ", i, e.status()) + e.what();
    }
  }
  const bool ok = right + refused == trials && (built ? right > 0 : refused == trials);
  report(ok, amk::text("%-28s %2d right (worst %.2f of the limit), %2d rejected%s%s", name.c_str(), right, worst,
                       refused, refused ? ": " : "", refused ? reason.c_str() : "") +
                 (wrong.empty() ? "" : " | " + wrong));
}

struct Knob {
  const char* name;
  std::vector<int32_t> built, refused;
  void (*set)(Config&, int32_t);
};

const Knob kKnobs[] = {
    {"gemv.N_tile",
     {0, 8, 16, 64, 256, 1024, 8192},
     {-8, 12, 8200},
     [](Config& c, int32_t v) { c.schedule.gemv_n_tile = v; }},
    {"attention.kv_block",
     {16, 32, 64, 128, 256, 512, 1024, 16384},
     {0, 24, AMK_MAX_SEQ + 16},
     [](Config& c, int32_t v) { c.schedule.attention_kv_block = v; }},
    {"fusion exactly",
     {0, AMK_FUSE_RMSNORM_GEMV, AMK_FUSE_GATE_UP, AMK_FUSE_GATE_UP_SILU, AMK_FUSE_GEMV_ADD, AMK_FUSE_QKV,
      AMK_FUSE_ROPE_KV_APPEND, AMK_FUSE_ROPE_KV_APPEND | AMK_FUSE_ROPE_ATTENTION, AMK_FUSE_ATTENTION_COMBINE, 61, 63,
      127, 255},
     {256},
     [](Config& c, int32_t v) { c.schedule.fusion = v; }},
    {"sm_assignment",
     {AMK_SM_ROUND_ROBIN, AMK_SM_LOAD_BALANCE, AMK_SM_EXPLICIT},
     {3},
     [](Config& c, int32_t v) { c.schedule.sm_policy = v; }},
    {"page_allocation",
     {AMK_PAGES_NONE, AMK_PAGES_LINEAR, AMK_PAGES_GRAPH_COLOR},
     {3},
     [](Config& c, int32_t v) { c.schedule.page_policy = v; }},
    {"SMs", {1, 2, 7, 66, 131, 132}, {}, [](Config& c, int32_t v) { c.sms = v; }},
    {"threads, in the program",
     {256},
     {0, 32, 128, 512, 1024, 2048},
     [](Config& c, int32_t v) { c.launch_threads = v ? v : -1; }},
    {"threads_per_block",
     {256},
     {0, 96, 4096},
     [](Config& c, int32_t v) {
       c.schedule.threads_per_block = v;
       c.launch_threads = 0;
     }},
    {"smem_bytes_per_block",
     {0, 150000, 200000},
     {-1, 1 << 20},
     [](Config& c, int32_t v) {
       with_ring(c);
       c.schedule.smem_bytes_per_block = v;
     }},
    {"pipelining_depth",
     {1, 2, 3, 6, 8, 12, 24},
     {-1, 0, 65},
     [](Config& c, int32_t v) {
       with_ring(c);
       c.schedule.pipelining_depth = v;
     }},
    {"cols_per_warp", {0}, {-1, 99}, [](Config& c, int32_t v) { c.schedule.cols_per_warp = v; }},
    {"cpasync",
     {0, 1},
     {-1, 99},
     [](Config& c, int32_t v) {
       with_ring(c);
       c.schedule.cpasync = v;
     }},
    {"cpa_stages",
     {0, 1, 2, 3},
     {-1, 9},
     [](Config& c, int32_t v) {
       with_ring(c);
       c.schedule.cpa_stages = v;
     }},
    {"cpa_cols", {0}, {-1, 99}, [](Config& c, int32_t v) { c.schedule.cpa_cols = v; }},
};

}  // namespace

int main(int argc, char** argv) {
  unsigned long long seed = 1;
  for (int i = 1; i < argc; ++i) {
    std::sscanf(argv[i], "trials=%d", &trials);
    std::sscanf(argv[i], "seed=%llu", &seed);
  }
  uint64_t next = seed * 7919;
  for (const Knob& k : kKnobs) {
    for (int32_t v : k.built) value(amk::text("%s = %d", k.name, v), true, next += 97, k.set, v);
    for (int32_t v : k.refused) value(amk::text("%s = %d", k.name, v), false, next += 97, k.set, v);
  }
  std::printf("gpu_random: %d failures\n", failures);
  return failures;
}
