// The GPU machine against the reference machine: logits, chosen token and appended cache rows of small models of every
// kind, under many schedules, at positions around every edge; then repeatability and graph replay. Needs a GPU.
// Out: one line per case, "FAIL" in it where a limit is broken; exit status = number of failures.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>

#include "gpu_model.h"

using namespace gpu_test;

namespace {

int failures = 0;

void report(bool ok, const std::string& line) {
  std::printf("%s %s\n", ok ? "ok  " : "FAIL", line.c_str());
  std::fflush(stdout);
  failures += !ok;
}

// max |a - b| / max |b|; infinite where a is not a number.
double error_of(int32_t dtype, const uint8_t* a, const uint8_t* b, int64_t count) {
  double worst = 0, largest = 1e-30;
  for (int64_t i = 0; i < count; ++i) {
    const double x = get(dtype, a, i), y = get(dtype, b, i);
    if (!(std::isfinite(x) && std::isfinite(y))) return INFINITY;
    worst = std::max(worst, std::abs(x - y));
    largest = std::max(largest, std::abs(y));
  }
  return worst / largest;
}

// f32: the sums differ only in their order. 16-bit types: each layer rounds about ten times to 2^-8 (bf16) or 2^-11,
// and a rounding that falls the other way is carried on.
double limit_of(int32_t dtype) { return dtype == AMK_DTYPE_F32 ? 1e-5 : dtype == AMK_DTYPE_BF16 ? 3e-2 : 4e-3; }

struct Pair {
  Bytes bytes;
  amk::ImageView image;
  std::map<std::string, Block> weights;
  std::unique_ptr<amk::Vm> reference, gpu;
  Pair(const amk_model_t& m, const amk_schedule_t& s, int32_t sms, int32_t guard)
      : bytes(make_image(m, s, sms)),
        image(view_of(bytes)),
        weights(make_weights(image, 7)),
        reference(amk::make_reference_vm(bytes, options())),
        gpu(amk::make_cuda_vm(bytes, options(guard), 0)) {
    bind_all(*reference, weights);
    bind_all(*gpu, weights);
    fill_caches(image, {reference.get(), gpu.get()}, 11);
  }
  void token(int32_t t) {
    reference->write("token", 0, &t, sizeof t);
    gpu->write("token", 0, &t, sizeof t);
  }
};

void compare(const char* name, const amk_model_t& m, const amk_schedule_t& s, int32_t sms) {
  try {
    Pair p(m, s, sms, 1);
    double logit_error = 0, cache_error = 0;
    bool same_choice = true;
    for (int32_t pos : {0, 1, 17, s.attention_kv_block - 1, s.attention_kv_block, 1023}) {
      if (pos >= m.max_seq) continue;
      p.token((pos * 37 + 5) % m.vocab);
      p.reference->run(pos);
      p.gpu->run(pos);
      const auto a = read_buffer(*p.gpu, p.image, "logits"), b = read_buffer(*p.reference, p.image, "logits");
      logit_error = std::max(logit_error, error_of(AMK_DTYPE_F32, a.data(), b.data(), m.vocab));
      int32_t got = 0;
      p.gpu->read("next_token", 0, &got, sizeof got);
      const float* logits = reinterpret_cast<const float*>(a.data());
      same_choice &= got == std::max_element(logits, logits + m.vocab) - logits;
      for (int32_t layer = 0; layer < m.layers; ++layer) {
        for (const char* which : {".k", ".v"}) {
          const std::string cache = "kv." + std::to_string(layer) + which;
          const auto x = read_buffer(*p.gpu, p.image, cache), y = read_buffer(*p.reference, p.image, cache);
          cache_error = std::max(cache_error,
                                 error_of(m.dtype, x.data(), y.data(), (int64_t)m.n_kv_heads * m.max_seq * m.head_dim));
        }
      }
    }
    const double limit = limit_of(m.dtype);
    report(
        logit_error <= limit && cache_error <= limit && same_choice,
        amk::text("%-34s %-4s N_tile %4d kv_block %4d fusion 0x%02x sm %d pages %d grid %3d: logits %.2e cache %.2e%s",
                  name, amk::dtype_name(m.dtype), s.gemv_n_tile, s.attention_kv_block, s.fusion, s.sm_policy,
                  s.page_policy, sms, logit_error, cache_error, same_choice ? "" : " WRONG CHOICE"));
  } catch (const amk::Error& e) {
    report(false, std::string(name) + ": " + amk::text("%d ", e.status()) + e.what());
  }
}

amk_schedule_t schedule(int32_t n_tile, int32_t kv_block, int32_t fusion = -1, int32_t sm = AMK_SM_ROUND_ROBIN,
                        int32_t pages = AMK_PAGES_LINEAR, int32_t threads = 0) {
  amk_schedule_t s = amk::default_schedule();
  s.gemv_n_tile = n_tile;
  s.attention_kv_block = kv_block;
  if (fusion >= 0) s.fusion = fusion;
  s.sm_policy = sm;
  s.page_policy = pages;
  if (threads) s.threads_per_block = threads;
  return s;
}

void compare_all() {
  const int32_t f32 = AMK_DTYPE_F32, f16 = AMK_DTYPE_F16, bf16 = AMK_DTYPE_BF16;
  const int32_t every_bias = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS;
  const int32_t qwen3 = AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD;
  const amk_schedule_t plain = schedule(0, 64);
  for (int32_t dtype : {f32, f16, bf16}) {
    const amk_model_t gqa = model(dtype, 2, 256, 8, 2, 32, 512, 1001, 1024);
    compare("gqa", gqa, plain, 132);
    compare("qwen3: qk norm, tied", model(dtype, 2, 256, 4, 2, 64, 768, 1000, 1024, qwen3), plain, 132);
    compare("every bias, mha", model(dtype, 2, 256, 4, 4, 64, 512, 1000, 1024, every_bias), plain, 132);
    compare("8 heads on 1", model(dtype, 1, 1024, 8, 1, 128, 2816, 2000, 1024, AMK_MODEL_QKV_BIAS), plain, 132);
    compare("head_dim 80", model(dtype, 1, 320, 4, 2, 80, 640, 1000, 1024), plain, 132);
    compare("head_dim 256", model(dtype, 1, 256, 2, 1, 256, 512, 1000, 1024), plain, 132);
    compare("7 heads on 1, odd rows", model(dtype, 1, 112, 7, 1, 16, 240, 997, 1024), plain, 5);
    compare("gqa", gqa, schedule(8, 16), 132);
    compare("gqa", gqa, schedule(64, 256, 0), 132);
    compare("gqa, unfused", gqa, schedule(0, 64, 0, AMK_SM_LOAD_BALANCE, AMK_PAGES_NONE), 3);
    compare("gqa", gqa,
            schedule(8192, 1024, AMK_FUSE_GATE_UP | AMK_FUSE_QKV, AMK_SM_ROUND_ROBIN, AMK_PAGES_GRAPH_COLOR), 1);
  }
  compare("qk norm and every bias, unfused", model(f32, 2, 256, 8, 2, 32, 512, 1000, 1024, qwen3 | every_bias),
          schedule(16, 128, 0, AMK_SM_LOAD_BALANCE, AMK_PAGES_GRAPH_COLOR), 17);
  compare("one layer of a 1B model", model(bf16, 1, 2048, 32, 8, 64, 8192, 4096, 1024), plain, 132);
  compare("many rows per tile (panels)", model(bf16, 1, 256, 4, 2, 64, 512, 6001, 1024), schedule(8192, 64), 2);
}

// The same step on the same state: the same bits, and a fixed cost in memory.
void repeat(int count) {
  const amk_model_t m = model(AMK_DTYPE_BF16, 2, 1024, 16, 8, 64, 3072, 8192, 1024, AMK_MODEL_QK_NORM);
  Pair p(m, schedule(0, 64), 132, 0);
  p.token(17);
  p.gpu->run(700);
  const auto first = read_buffer(*p.gpu, p.image, "logits");
  size_t free_before = 0, free_after = 0, total = 0;
  cudaMemGetInfo(&free_before, &total);
  int different = 0;
  for (int i = 0; i < count; ++i) {
    p.gpu->run(700);
    if (i % 10 == 0) different += read_buffer(*p.gpu, p.image, "logits") != first;
  }
  different += read_buffer(*p.gpu, p.image, "logits") != first;
  cudaMemGetInfo(&free_after, &total);
  report(different == 0 && free_before == free_after,
         amk::text("%d relaunches: %d of every tenth differ, device memory %+lld bytes", count, different,
                   (long long)free_before - (long long)free_after));
}

// launch() into a capturing stream, replayed at several positions.
void replay() {
  const amk_model_t m = model(AMK_DTYPE_F32, 2, 256, 8, 2, 32, 512, 1000, 1024);
  Pair p(m, schedule(0, 64), 132, 0);
  p.token(3);
  p.gpu->prepare();
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  bool ok = cudaStreamCreate(&stream) == cudaSuccess &&
            cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
  p.gpu->launch(0, stream);
  ok =
      ok && cudaStreamEndCapture(stream, &graph) == cudaSuccess && cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess;
  double error = 0;
  for (int32_t pos : {0, 5, 64, 900}) {
    p.gpu->aim(pos);
    ok = ok && cudaGraphLaunch(exec, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess;
    p.gpu->finish();
    p.reference->run(pos);
    const auto a = read_buffer(*p.gpu, p.image, "logits"), b = read_buffer(*p.reference, p.image, "logits");
    error = std::max(error, error_of(AMK_DTYPE_F32, a.data(), b.data(), m.vocab));
  }
  bool stale_proof_refused = false;
  p.gpu->aim(1);
  try {
    p.gpu->finish();  // nothing ran since aim
  } catch (const amk::Error& e) {
    stale_proof_refused = e.status() == AMK_ERR_INTERNAL;
  }
  report(ok && error <= 1e-5 && stale_proof_refused,
         amk::text("graph replay at 4 positions: logits %.2e, a step that did not run is %s", error,
                   stale_proof_refused ? "noticed" : "NOT noticed"));
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

void long_context() {
  const amk_model_t m = model(AMK_DTYPE_BF16, 1, 512, 8, 2, 64, 1024, 1000, 8192);
  Pair p(m, schedule(0, 64), 132, 0);
  double error = 0;
  for (int32_t pos : {4095, 8190, 8191}) {
    p.token(pos % 1000);
    p.gpu->run(pos);
    p.reference->run(pos);
    const auto a = read_buffer(*p.gpu, p.image, "logits"), b = read_buffer(*p.reference, p.image, "logits");
    error = std::max(error, error_of(AMK_DTYPE_F32, a.data(), b.data(), m.vocab));
  }
  report(error <= limit_of(m.dtype), amk::text("positions to 8,191: logits %.2e", error));
}

}  // namespace

int main(int argc, char** argv) {
  int repeats = 1000;  // fewer under a sanitizer: repeats=10
  for (int i = 1; i < argc; ++i) std::sscanf(argv[i], "repeats=%d", &repeats);
  try {
    compare_all();
    long_context();
    repeat(repeats);
    replay();
  } catch (const amk::Error& e) {
    report(false, amk::text("status %d: ", e.status()) + e.what());
  }
  std::printf("gpu_check: %d failures\n", failures);
  return failures;
}
