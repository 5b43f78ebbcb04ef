// No false accept: lowered programs with one thing changed at random, drawn so that most of them stay lawful. Whatever
// both judges accept must compute what the unchanged program computes, on the reference machine and random weights.
#include <cmath>
#include <map>

#include "test_vm_machine.h"
#include "translation_support.h"

using namespace amk;

namespace {

constexpr int kMutants = 24000, kSteps = 3;

// Everything the machine leaves outside of itself after some steps.
struct Outcome {
  std::vector<float> numbers;
  std::vector<int32_t> tokens;
};

Outcome run(const Image& image, Weights& weights, const amk_model_t& m) {
  const std::unique_ptr<Vm> vm = make_vm(image, 0, 0, 1);
  weights.bind(*vm);
  Outcome out;
  const auto take = [&](const std::string& name, size_t n) {
    const size_t at = out.numbers.size();
    out.numbers.resize(at + n);
    vm->read(name, 0, &out.numbers[at], n * sizeof(float));
  };
  const size_t batch = static_cast<size_t>(std::max(m.batch, 1));
  for (int step = 0; step < kSteps; ++step) {
    const int pos = step * static_cast<int>(batch);
    std::vector<int32_t> tokens(batch), next(batch, -2);
    for (size_t t = 0; t < batch; ++t) tokens[t] = (pos + static_cast<int>(t)) * 7 % 61 + 3;
    vm->write("token", 0, tokens.data(), batch * sizeof(int32_t));
    vm->run(pos);
    take("logits", batch * static_cast<size_t>(m.vocab));
    vm->read("next_token", 0, next.data(), batch * sizeof(int32_t));
    out.tokens.insert(out.tokens.end(), next.begin(), next.end());
  }
  // By name, so that buffers whose names were exchanged are not compared with each other.
  std::map<std::string, size_t> lasting;
  const ImageView v = image.view();
  for (size_t b = 0; b < v.buffers.size(); ++b)
    if (v.bindings[b].kind == AMK_KIND_KV_CACHE || v.bindings[b].kind == AMK_KIND_STATE)
      lasting[std::string(v.buffer_name.at(b))] = static_cast<size_t>(v.buffers[b].numel);
  for (const auto& [name, n] : lasting) take(name, n);
  return out;
}

// Relative to the largest number: sums may be taken in another order.
double difference(const Outcome& a, const Outcome& b) {
  double largest = 0, apart = 0;
  for (size_t i = 0; i < a.numbers.size(); ++i) {
    largest = std::max(largest, std::fabs(static_cast<double>(a.numbers[i])));
    apart = std::max(apart, std::fabs(static_cast<double>(a.numbers[i]) - static_cast<double>(b.numbers[i])));
  }
  return a.tokens == b.tokens ? apart / largest : 1;
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_{seed} {}

  void mutate(Edited& e) {
    Program& p = e.program;
    amk_instruction_t& t = p.tasks[pick(p.tasks.size())];
    switch (random_.between(0, 11)) {
      case 0:
      case 1:
      case 2: return change_input(p, t);
      case 3: return change_output(p, t);
      case 4:
      case 5: return borrow_param(p, t);
      case 6: return nudge_param(e, t);
      case 7: return swap_strings(p, random_.between(0, 2) ? &Program::buffer_source : &Program::buffer_name);
      case 8: return change_flag(p, t);
      case 9: return change_queue(p, t);
      case 10: return swap_params(p, t);
      default: return change_float(t);
    }
  }

 private:
  size_t pick(size_t n) { return static_cast<size_t>(random_.next() % n); }
  // Another buffer that could stand in the place of `id`.
  int32_t like(const Program& p, int32_t id) {
    for (int tries = 0; tries < 40; ++tries) {
      const size_t other = pick(p.buffers.size());
      const bool plain = p.bindings[other].kind == p.bindings[id].kind || random_.between(0, 3) == 0;
      if (plain && p.buffers[other].dtype == p.buffers[id].dtype &&
          (p.buffers[other].numel == p.buffers[id].numel || random_.between(0, 7) == 0))
        return static_cast<int32_t>(other);
    }
    return id;
  }
  void change_input(const Program& p, amk_instruction_t& t) {
    if (t.n_inputs == 0) return;
    const int slot = static_cast<int>(pick(static_cast<size_t>(t.n_inputs)));
    const int32_t from = t.inputs[slot], to = like(p, from);
    const bool whole_op = random_.between(0, 1);
    for (amk_instruction_t& other : const_cast<Program&>(p).tasks)
      if (&other == &t || (whole_op && other.out_counter == t.out_counter && slot < other.n_inputs))
        if (other.inputs[slot] == from) {
          other.inputs[slot] = to;
          if (other.n_outputs == 2 && other.outputs[1] == from) other.outputs[1] = to;  // a state is both
        }
  }
  void change_output(Program& p, amk_instruction_t& t) {
    if (t.n_outputs == 0) return;
    const int32_t from = t.outputs[0], to = like(p, from);
    const int counter = t.out_counter;
    for (amk_instruction_t& other : p.tasks)
      if (other.out_counter == counter && other.outputs[0] == from) other.outputs[0] = to;
  }
  // A parameter of another task of the same opcode.
  void borrow_param(const Program& p, amk_instruction_t& t) {
    for (int tries = 0; tries < 40; ++tries) {
      const amk_instruction_t& other = p.tasks[pick(p.tasks.size())];
      const ParamField* field = param_field(static_cast<int>(pick(kParamFieldCount)));
      if (other.op != t.op || !field->as_int || other.params.*field->as_int == t.params.*field->as_int) continue;
      t.params.*field->as_int = other.params.*field->as_int;
      return;
    }
  }
  void nudge_param(const Edited& e, amk_instruction_t& t) {
    const int32_t kSteps[] = {1, 4, 8, e.model.head_dim, e.model.n_heads * e.model.head_dim, e.model.ffn, 2, 16};
    constexpr int32_t amk_params_t::* kFields[] = {&amk_params_t::m_off,  &amk_params_t::n_off, &amk_params_t::N_tile,
                                                   &amk_params_t::M_tile, &amk_params_t::dim,   &amk_params_t::N};
    const int32_t step = kSteps[pick(8)];
    t.params.*kFields[pick(6)] += random_.between(0, 1) ? step : -step;
  }
  void swap_strings(Program& p, Strings Program::* table) {
    const int32_t a = static_cast<int32_t>(pick(p.buffers.size())), b = like(p, a);
    Strings out;
    for (int32_t i = 0; i < static_cast<int32_t>(p.buffers.size()); ++i)
      out.push((p.*table).at(i == a ? b : i == b ? a : i));
    p.*table = out;
  }
  void change_flag(Program& p, amk_instruction_t& t) {
    const int32_t flag = 1 << pick(8), counter = t.out_counter;
    for (amk_instruction_t& other : p.tasks) {
      if (other.out_counter != counter) continue;
      const FlagSlots slots = flag_slots(other);
      const int slot = flag == AMK_FLAG_NORM       ? slots.norm
                       : flag == AMK_FLAG_BIAS     ? slots.bias
                       : flag == AMK_FLAG_ROPE     ? slots.rope
                       : flag == AMK_FLAG_RESIDUAL ? slots.residual
                                                   : -1;
      if ((other.params.flags & flag) && slot >= 0) {
        Edited::drop_flag(other, flag, slot);
        if (flag != AMK_FLAG_NORM) continue;
        other.params.flags &= ~AMK_FLAG_NORM_PLUS_ONE;
        other.params.eps = 0;
      } else if ((other.params.flags & flag) && flag == AMK_FLAG_L2_NORM) {
        other.params.flags = 0;
        other.params.eps = 0;
      } else {
        other.params.flags ^= flag;
      }
    }
  }
  void change_queue(const Program& p, amk_instruction_t& t) {
    if (random_.between(0, 2)) {
      t.sm = static_cast<int32_t>(pick(static_cast<size_t>(p.launch.grid)));
    } else if (t.n_waits > 0) {
      --t.n_waits;
      t.wait_counter[t.n_waits] = t.wait_threshold[t.n_waits] = 0;
    }
  }
  // Two tiles of one op exchange a parameter, or all of them.
  void swap_params(Program& p, amk_instruction_t& t) {
    amk_instruction_t& other = p.tasks[pick(p.tasks.size())];
    if (other.op != t.op) return;
    if (random_.between(0, 1)) return std::swap(other.params, t.params);
    const ParamField* field = param_field(static_cast<int>(pick(kParamFieldCount)));
    if (field->as_int) std::swap(other.params.*field->as_int, t.params.*field->as_int);
  }
  void change_float(amk_instruction_t& t) {
    float& number = random_.between(0, 1) ? t.params.eps : t.params.scale;
    const float kFactors[] = {0.5f, 2.0f, 1.25f, 1.0f + 0x1p-20f};
    number *= kFactors[pick(4)];
    if (t.op == AMK_OP_ADD) t.op = AMK_OP_MUL;
  }

  TestRandom random_;
};

struct Base {
  Edited edited;
  Image image;
  Weights weights;
  Outcome outcome;

  explicit Base(Edited e, uint64_t seed)
      : edited(std::move(e)),
        image(pack(must_validate(edited.program))),
        weights(image, seed),
        outcome(run(image, weights, edited.model)) {}
};

}  // namespace

TEST(what_both_judges_accept_computes_the_model) {
  constexpr int32_t kBiases = AMK_MODEL_QKV_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_MLP_BIAS;
  std::vector<Base> bases;
  for (const int32_t features : {0, kBiases | AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD})
    for (const int32_t fusion : {0, 63, 18, 127})
      for (const int32_t pages : {AMK_PAGES_NONE, AMK_PAGES_LINEAR})
        bases.emplace_back(Edited(make_model(AMK_DTYPE_F32, 2, 32, 4, 2, 8, 32, 64, 24, features), fusion, pages), 11);
  // One split: attention writes its heads itself.
  for (const int32_t features : {0, kBiases | AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD})
    for (const int32_t fusion : {AMK_FUSE_ATTENTION_COMBINE | 0, 255})
      for (const int32_t pages : {AMK_PAGES_NONE, AMK_PAGES_LINEAR})
        bases.emplace_back(Edited(make_model(AMK_DTYPE_F32, 2, 32, 4, 2, 8, 32, 64, 24, features), fusion, pages, 32),
                           11);
  const amk_model_t gated = make_model(AMK_DTYPE_F32, 3, 32, 4, 2, 8, 32, 64, 24, kHybridFeatures);
  for (const int32_t fusion : {0, 63, 18, 127, 255})
    for (const int32_t pages : {AMK_PAGES_NONE, AMK_PAGES_LINEAR})
      bases.emplace_back(Edited(make_hybrid(gated, 3, 2, 4, 8, 3), fusion, pages, fusion == 255 ? 32 : 16), 11);
  for (const int32_t features : {0, kBiases | AMK_MODEL_QK_NORM | AMK_MODEL_TIED_HEAD})
    for (const int32_t fusion : {0, 63, 18, 127}) {
      amk_model_t m = make_model(AMK_DTYPE_F32, 2, 32, 4, 2, 8, 32, 64, 24, features);
      m.batch = features ? 2 : 3;
      bases.emplace_back(Edited(m, fusion, fusion == 18 ? AMK_PAGES_NONE : AMK_PAGES_LINEAR), 11);
    }
  int lawful = 0, accepted = 0, refused = 0, changed = 0;
  for (int i = 0; i < kMutants; ++i) {
    Base& base = bases[static_cast<size_t>(i) % bases.size()];
    Edited mutant = base.edited;
    Mutator(static_cast<uint64_t>(i) * 977 + 5).mutate(mutant);
    const Judgement plain = validate(mutant.program);
    if (!plain.valid) continue;
    ++lawful;
    const Judgement judged = validate_model(mutant.program, mutant.model);
    if (!judged.valid) {
      CHECK_EQ(judged.report.entries()[0].code, 17);
      ++refused;
      continue;
    }
    ++accepted;
    changed += table_bytes(mutant.program) != table_bytes(base.edited.program);
    const double apart = difference(base.outcome, run(pack(*judged.valid), base.weights, mutant.model));
    if (!(apart <= 1e-5)) check::fail("mutant", i, text("accepted, but its results are %g apart", apart));
  }
  std::printf("%d mutants: %d lawful, of which %d refused and %d accepted (%d changed)\n", kMutants, lawful, refused,
              accepted, changed);
  CHECK(refused > kMutants / 20);
  CHECK(changed > kMutants / 100);
}
