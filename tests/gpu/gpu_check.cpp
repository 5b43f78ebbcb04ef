// The GPU machine against the reference machine: logits, chosen token and appended cache rows of small models of every
// kind, under many schedules, at positions around every edge; then graph replay. Needs a GPU.
// Out: one line per case, "FAIL" in it where a limit is broken; exit status = number of failures.
#include <cuda_runtime_api.h>

#include <cstdio>

#include "gpu_pair.h"

using namespace gpu_test;

namespace gpu_test {
void hybrid_models(int32_t deadline_ms, bool few);
}  // namespace gpu_test

namespace {

int32_t deadline_ms = 0;  // 0: the machine's own; longer under a sanitizer

void compare(const char* name, const amk_model_t& m, const amk_schedule_t& s, int32_t sms, bool few = false) {
  try {
    Pair p(make_image(m, s, sms), 1, deadline_ms);
    double logit_error = 0, cache_error = 0;
    bool same_choice = true;
    std::vector<int32_t> positions = positions_below(m.max_seq, s.attention_kv_block);
    if (few) positions = {0, 17};
    for (int32_t pos : positions) {
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

// What each supported family is made of, with a cache of 8,192 rows and all three dtypes.
void families() {
  const int32_t qk_norm = AMK_MODEL_QK_NORM, tied = AMK_MODEL_TIED_HEAD, qkv_bias = AMK_MODEL_QKV_BIAS;
  for (int32_t dtype : {AMK_DTYPE_F32, AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
    const amk_schedule_t plain = schedule(0, 64);
    compare("llama2: mha", model(dtype, 2, 256, 4, 4, 64, 688, 1000, 8192), plain, 132);
    compare("llama3: gqa", model(dtype, 2, 256, 8, 2, 32, 512, 1001, 8192), plain, 132);
    compare("mistral: q wider than hidden", model(dtype, 2, 160, 8, 2, 24, 512, 1000, 8192), plain, 132);
    compare("qwen2: qkv bias, tied", model(dtype, 2, 256, 4, 2, 64, 512, 1000, 8192, qkv_bias | tied), plain, 132);
    compare("qwen3: qk norm", model(dtype, 2, 128, 4, 2, 64, 512, 1000, 8192, qk_norm), plain, 132);
    compare("smollm: 9 heads on 3, tied", model(dtype, 2, 144, 9, 3, 16, 256, 1000, 8192, tied), plain, 132);
  }
}

amk_model_t quantised(amk_model_t m, int32_t group) {
  m.weight_group = group;
  return m;
}

// Matrices as int8, of every kind of model that streams; and what cannot is refused before anything is launched.
void int8_models() {
  const int32_t every_bias = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS;
  const amk_schedule_t plain = schedule(0, 64);
  for (int32_t dtype : {AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
    for (int32_t group : {64, 128}) {
      const amk_model_t gqa = quantised(model(dtype, 2, 256, 8, 2, 32, 512, 1000, 1024), group);
      compare("int8 gqa", gqa, plain, 132);
      compare("int8 gqa, unfused", gqa, schedule(0, 64, 0, AMK_SM_LOAD_BALANCE, AMK_PAGES_NONE), 3);
      compare("int8 gqa", gqa, schedule(8, 16), 132);
      compare("int8 qk norm", quantised(model(dtype, 2, 256, 4, 2, 64, 768, 1000, 1024, AMK_MODEL_QK_NORM), group),
              plain, 132);
      compare("int8 every bias, mha", quantised(model(dtype, 2, 256, 4, 4, 64, 640, 1000, 1024, every_bias), group),
              plain, 132);
      compare("int8, tied head plain",
              quantised(model(dtype, 2, 128, 4, 2, 32, 1152, 1000, 1024, AMK_MODEL_TIED_HEAD), group), plain, 132);
      compare("int8 panels", quantised(model(dtype, 1, 256, 4, 2, 64, 512, 6000, 1024), group), schedule(8192, 64), 2);
    }
  }
  compare("int8 one layer of 1B", quantised(model(AMK_DTYPE_BF16, 1, 2048, 32, 8, 64, 8192, 4096, 1024), 128), plain,
          132);
  compare("int8 one layer of 8B", quantised(model(AMK_DTYPE_BF16, 1, 4096, 32, 8, 128, 14336, 4096, 1024), 128), plain,
          132);
  amk_schedule_t direct = plain;
  direct.cpasync = 0;
  const auto refused = [&](const char* what, const amk_model_t& m, const amk_schedule_t& s) {
    std::string said = "accepted";
    try {
      amk::make_cuda_vm(make_image(m, s, 4), options(), 0);
    } catch (const amk::Error& e) {
      said = amk::text("%d ", e.status()) + e.what();
    }
    report(
        said.find(amk::text("%d ", AMK_ERR_REJECTED)) == 0 && said.find("through the ring alone") != std::string::npos,
        amk::text("int8 %s: %s", what, said.c_str()));
  };
  refused("loaded directly", quantised(model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 256, 512, 64), 64), direct);
  refused("f32", quantised(model(AMK_DTYPE_F32, 1, 128, 4, 2, 32, 256, 512, 64), 64), plain);
  refused("odd vocabulary", quantised(model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 256, 511, 64), 64), plain);
}

// launch() into a capturing stream, replayed at several positions.
void replay() {
  const amk_model_t m = model(AMK_DTYPE_F32, 2, 256, 8, 2, 32, 512, 1000, 1024);
  Pair p(make_image(m, schedule(0, 64), 132), 0, deadline_ms);
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
  for (int32_t dtype : {AMK_DTYPE_F32, AMK_DTYPE_F16, AMK_DTYPE_BF16}) {
    const amk_model_t m = model(dtype, 1, 512, 8, 2, 64, 1024, 1000, 8192);
    Pair p(make_image(m, schedule(0, 64), 132), 0, deadline_ms);
    double error = 0;
    for (int32_t pos : {0, 1, 17, 63, 64, 1023, 4095, 8190, 8191}) {
      p.token(pos % 1000);
      p.gpu->run(pos);
      p.reference->run(pos);
      const auto a = read_buffer(*p.gpu, p.image, "logits"), b = read_buffer(*p.reference, p.image, "logits");
      error = std::max(error, error_of(AMK_DTYPE_F32, a.data(), b.data(), m.vocab));
    }
    report(error <= limit_of(dtype), amk::text("%-4s positions to 8,191: logits %.2e", amk::dtype_name(dtype), error));
  }
}

// Four whole models at two positions each, and hybrids for three steps: what a sanitizer, some hundred times slower,
// has time for.
void three_models() {
  const int32_t qwen3 = AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD;
  compare("gqa", model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 256, 500, 64), schedule(0, 16), 16, true);
  compare("qk norm, tied, every bias",
          model(AMK_DTYPE_F32, 1, 128, 4, 2, 32, 256, 500, 64,
                qwen3 | AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS),
          schedule(8, 16, 0), 8, true);
  compare("int8", quantised(model(AMK_DTYPE_BF16, 1, 128, 4, 2, 32, 256, 504, 64), 64), schedule(0, 16), 16, true);
  compare("mha, 80 wide", model(AMK_DTYPE_F16, 1, 160, 2, 2, 80, 320, 301, 64), schedule(64, 32), 3, true);
  hybrid_models(deadline_ms, true);
}

}  // namespace

// "int8", "hybrid": quantised and hybrid models alone. "quick": the first models alone, before and after a measurement.
// "three": see there. deadline_ms=N.
int main(int argc, char** argv) {
  const std::string which = argc > 1 ? argv[1] : "";
  for (int i = 1; i < argc; ++i) std::sscanf(argv[i], "deadline_ms=%d", &deadline_ms);
  try {
    if (which == "int8") {
      int8_models();
    } else if (which == "hybrid") {
      hybrid_models(deadline_ms, false);
    } else if (which == "three") {
      three_models();
    } else if (which == "quick") {
      long_context();
      compare("one layer of a 1B model", model(AMK_DTYPE_BF16, 1, 2048, 32, 8, 64, 8192, 4096, 1024), schedule(0, 64),
              132);
    } else {
      compare_all();
      families();
      int8_models();
      hybrid_models(deadline_ms, false);
      long_context();
      replay();
    }
  } catch (const amk::Error& e) {
    report(false, amk::text("status %d: ", e.status()) + e.what());
  }
  std::printf("gpu_check %s: %d failures\n", which.c_str(), failures);
  return failures;
}
