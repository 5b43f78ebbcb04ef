// How long the judge takes: bench_validate [tasks] [runs]. A decoder of the 8B shape is repeated until it has that
// many tasks (200,000 by default) on 132 queues, with pages that every layer reuses. Prints medians and peak memory.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "base/error.h"
#include "pack/image.h"
#include "program_builder.h"
#include "validate/validate.h"

namespace {

constexpr int kH = 4096, kF = 14336, kQ = 32, kG = 8, kD = 128, kS = 2048, kV = 128256, kSplits = 16, kQueues = 132;
constexpr int kT = AMK_DTYPE_BF16;

// Layers one after another; each phase has a counter that the next one joins.
class Decoder {
 public:
  explicit Decoder(int64_t tasks) : b_(kQueues, kS) {
    for (int64_t elements : {kH, kH, (kQ + 2 * kG) * kD, kQ * kD, kQ * kD, kF}) pages_.push_back(b_.page(elements * 2));
    part_o_page_ = b_.page(int64_t{kQ} * kSplits * kD * 4);
    part_ml_page_ = b_.page(int64_t{kQ} * kSplits * 2 * 4);
    inv_freq_ = b_.buffer("rope_inv_freq", AMK_KIND_CONST, AMK_DTYPE_F32, {kD / 2});
    embed_ = b_.buffer("embed", AMK_KIND_WEIGHT, kT, {kV, kH});
    const int token = b_.buffer("token", AMK_KIND_IO_INPUT, AMK_DTYPE_I32, {1});
    x_ = scratch("x.0", 0, kH);
    amk_params_t p{};
    p.vocab = kV;
    p.hidden = p.N_tile = kH;
    ready_ = b_.counter();
    b_.task(0, AMK_OP_EMBED, {token, embed_}, {x_}, p, ready_);
    producers_.push_back(1);
    // The head adds kQueues + 1 + 2 * kQueues tasks; whole layers fill the rest.
    for (int i = 0; static_cast<int64_t>(b_.program.tasks.size()) + 4 * kQueues < tasks; ++i) layer(i);
    head();
  }
  const amk::Program& program() const { return b_.program; }

 private:
  int scratch(const std::string& name, int page, int64_t elements) {
    return b_.buffer(name, AMK_KIND_ACTIVATION, kT, {elements}, pages_[page]);
  }
  int weight(const std::string& name, std::initializer_list<int64_t> shape) {
    return b_.buffer(name, AMK_KIND_WEIGHT, kT, shape);
  }
  // One more task of a phase that waits for whole earlier phases.
  void task(int op, std::initializer_list<int> in, std::initializer_list<int> out, const amk_params_t& p, int counter,
            std::initializer_list<int> after) {
    const int id = b_.task(next_queue_++ % kQueues, op, in, out, p, counter);
    amk_instruction_t& t = b_.program.tasks[id];
    for (int c : after) {
      t.wait_counter[t.n_waits] = c;
      t.wait_threshold[t.n_waits++] = producers_[c];
    }
    producers_.resize(std::max<size_t>(producers_.size(), counter + 1));
    ++producers_[counter];
  }
  int gemv(int x, std::initializer_list<int> rest, int out, int k, int n, int flags, int after, int tiles = kQueues) {
    const int counter = b_.counter();
    const int groups = n / AMK_ROW_GROUP;
    for (int t = 0; t < tiles; ++t) {
      amk_params_t p{};
      p.K = k;
      p.N = n;
      p.n_off = groups * t / tiles * AMK_ROW_GROUP;
      p.N_tile = groups * (t + 1) / tiles * AMK_ROW_GROUP - p.n_off;
      p.flags = flags;
      if (flags & AMK_FLAG_NORM) p.eps = 1e-5f;
      const int id = static_cast<int>(b_.program.tasks.size());
      task(AMK_OP_GEMV_TILE, {x}, {out}, p, counter, {after});
      amk_instruction_t& made = b_.program.tasks[id];
      for (int buffer : rest) made.inputs[made.n_inputs++] = buffer;
    }
    return counter;
  }
  void layer(int i) {
    const std::string l = amk::text("layers.%d.", i);
    const int qkv = scratch(l + "qkv", 2, (kQ + 2 * kG) * kD), q = scratch(l + "q", 3, kQ * kD);
    const int k_cache = b_.buffer(amk::text("kv.%d.k", i), AMK_KIND_KV_CACHE, kT, {kG, kS, kD});
    const int v_cache = b_.buffer(amk::text("kv.%d.v", i), AMK_KIND_KV_CACHE, kT, {kG, kS, kD});
    const int part_o = b_.buffer(l + "part_o", AMK_KIND_ACTIVATION, AMK_DTYPE_F32, {kQ, kSplits, kD}, part_o_page_);
    const int part_ml = b_.buffer(l + "part_ml", AMK_KIND_ACTIVATION, AMK_DTYPE_F32, {kQ, kSplits, 2}, part_ml_page_);
    const int attn = scratch(l + "attn", 4, kQ * kD), h = scratch(l + "h", 1, kH), act = scratch(l + "act", 5, kF);
    const int x = scratch(amk::text("x.%d", i + 1), 0, kH);

    const int rows = (kQ + 2 * kG) * kD;
    const int qkv_done =
        gemv(x_, {weight(l + "wqkv", {rows, kH}), weight(l + "attn_norm", {kH})}, qkv, kH, rows, AMK_FLAG_NORM, ready_);
    const int rotated = b_.counter(), appended = b_.counter(), attended = b_.counter(), combined = b_.counter();
    for (int g = 0; g < kG; ++g) {
      const int heads = kQ / kG;
      amk_params_t rope{};
      rope.n_heads = heads;
      rope.head_dim = kD;
      rope.m_off = rope.n_off = g * heads * kD;
      task(AMK_OP_ROPE, {qkv, inv_freq_}, {q}, rope, rotated, {qkv_done});
      amk_params_t append{};
      append.n_kv_heads = kG;
      append.head_dim = kD;
      append.K = kS;
      append.n_off = g;
      append.N_tile = 1;
      append.m_off = (kQ + g) * kD;
      append.flags = AMK_FLAG_ROPE;
      task(AMK_OP_KV_APPEND, {qkv, inv_freq_}, {k_cache}, append, appended, {qkv_done});
      append.m_off = (kQ + kG + g) * kD;
      append.flags = 0;
      task(AMK_OP_KV_APPEND, {qkv}, {v_cache}, append, appended, {qkv_done});
    }
    for (int g = 0; g < kG; ++g) {
      for (int split = 0; split < kSplits; ++split) {
        amk_params_t p{};
        p.n_heads = kQ;
        p.n_kv_heads = kG;
        p.head_dim = kD;
        p.K = kS;
        p.M = kSplits;
        p.M_tile = 64;
        p.n_off = g;
        p.N_tile = 1;
        p.dim = split;
        p.scale = 0.0883883f;
        task(AMK_OP_ATTENTION_TILE, {q, k_cache, v_cache}, {part_o, part_ml}, p, attended, {rotated, appended});
      }
    }
    for (int head = 0; head < kQ; ++head) {
      amk_params_t p{};
      p.n_heads = kQ;
      p.head_dim = kD;
      p.M = kSplits;
      p.n_off = head;
      p.N_tile = 1;
      task(AMK_OP_ATTENTION_COMBINE, {part_o, part_ml}, {attn}, p, combined, {attended});
    }
    const int h_done = gemv(attn, {weight(l + "wo", {kH, kQ * kD}), x_}, h, kQ * kD, kH, AMK_FLAG_RESIDUAL, combined);
    const int act_done = gemv(h, {weight(l + "w_gate_up", {2 * kF, kH}), weight(l + "mlp_norm", {kH})}, act, kH, kF,
                              AMK_FLAG_NORM | AMK_FLAG_SILU_PAIR, h_done);
    ready_ = gemv(act, {weight(l + "w_down", {kH, kF}), h}, x, kF, kH, AMK_FLAG_RESIDUAL, act_done);
    x_ = x;
  }
  void head() {
    const int logits = b_.buffer("logits", AMK_KIND_IO_OUTPUT, AMK_DTYPE_F32, {kV});
    const int best = b_.activation("best_value", AMK_DTYPE_F32, {kQueues});
    const int index = b_.activation("best_index", AMK_DTYPE_I32, {kQueues});
    const int next = b_.buffer("next_token", AMK_KIND_IO_OUTPUT, AMK_DTYPE_I32, {1});
    const int logits_done =
        gemv(x_, {embed_, weight("final_norm", {kH})}, logits, kH, kV, AMK_FLAG_NORM, ready_, 2 * kQueues);
    const int sampled = b_.counter(), done = b_.counter();
    for (int t = 0; t < kQueues; ++t) {
      amk_params_t p{};
      p.vocab = kV;
      p.n_off = kV * t / kQueues;
      p.N_tile = kV * (t + 1) / kQueues - p.n_off;
      p.M = kQueues;
      p.dim = t;
      task(AMK_OP_SAMPLE_ARGMAX, {logits}, {best, index}, p, sampled, {logits_done});
    }
    amk_params_t p{};
    p.M = kQueues;
    task(AMK_OP_ARGMAX_COMBINE, {best, index}, {next}, p, done, {sampled});
  }

  ProgramBuilder b_;
  std::vector<int> pages_;
  std::vector<int> producers_;
  int part_o_page_ = 0, part_ml_page_ = 0, inv_freq_ = 0, embed_ = 0, x_ = 0, ready_ = 0, next_queue_ = 0;
};

// Wall time, and the time this process spent on its core: they differ where others use the machine too.
struct Moment {
  double wall_ms, cpu_ms;
};
Moment now() {
  return {std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(),
          1e3 * static_cast<double>(std::clock()) / CLOCKS_PER_SEC};
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t tasks = argc > 1 ? std::atoll(argv[1]) : 200000;
  const int runs = argc > 2 ? std::max(1, std::atoi(argv[2])) : 7;
  const Decoder decoder(tasks);
  const amk::Program& program = decoder.program();
  std::vector<double> wall, cpu, pack_wall, pack_cpu;
  size_t image_bytes = 0;
  for (int i = 0; i < runs; ++i) {
    amk::Program copy = program;
    Moment start = now();
    const amk::Judgement judgement = amk::validate(std::move(copy));
    Moment end = now();
    wall.push_back(end.wall_ms - start.wall_ms);
    cpu.push_back(end.cpu_ms - start.cpu_ms);
    if (!judgement.report.ok()) {
      std::printf("V%d: %s\n", judgement.report.entries()[0].code, judgement.report.entries()[0].text.c_str());
      return 1;
    }
    start = now();
    image_bytes = amk::pack(*judgement.valid).bytes().size();
    end = now();
    pack_wall.push_back(end.wall_ms - start.wall_ms);
    pack_cpu.push_back(end.cpu_ms - start.cpu_ms);
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("tasks %zu counters %zu buffers %zu queues %d runs %d, medians\n", program.tasks.size(),
              program.counter_init.size(), program.buffers.size(), kQueues, runs);
  std::printf("validate %.1f ms (%.1f on the core), pack %.1f ms (%.1f), image %.1f MB, peak RSS %.1f MB\n",
              median(wall), median(cpu), median(pack_wall), median(pack_cpu), static_cast<double>(image_bytes) / 1e6,
              static_cast<double>(usage.ru_maxrss) / 1e3);
}
