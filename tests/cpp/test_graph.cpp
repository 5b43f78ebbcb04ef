// The decoder graph: its nodes and shapes, and the refusal of every field outside its domain.
#include <cmath>
#include <limits>
#include <set>

#include "lower_models.h"

using namespace amk;

namespace {

const Node* find_node(const Graph& g, const std::string& name) {
  for (const Node& n : g.nodes)
    if (n.name == name) return &n;
  return nullptr;
}
const Tensor* find_tensor(const Graph& g, const std::string& name) {
  for (const Tensor& t : g.tensors)
    if (t.name == name) return &t;
  return nullptr;
}

}  // namespace

TEST(nodes_of_one_layer_in_order) {
  const Graph g = build_decoder(toy_model());
  const char* kNames[] = {"embed",
                          "layers.0.attn_norm",
                          "layers.0.q",
                          "layers.0.k",
                          "layers.0.v",
                          "layers.0.rope_q",
                          "layers.0.rope_k",
                          "layers.0.append_k",
                          "layers.0.append_v",
                          "layers.0.attention",
                          "layers.0.o",
                          "layers.0.o_add",
                          "layers.0.mlp_norm",
                          "layers.0.gate",
                          "layers.0.up",
                          "layers.0.silu_mul",
                          "layers.0.down",
                          "layers.0.down_add",
                          "final_norm",
                          "lm_head",
                          "argmax"};
  CHECK_EQ(g.nodes.size(), std::size(kNames));
  for (size_t i = 0; i < g.nodes.size() && i < std::size(kNames); ++i) CHECK_EQ(g.nodes[i].name, kNames[i]);
}

TEST(tensors_have_the_shapes_of_the_model) {
  const Graph g = build_decoder(make_model(AMK_DTYPE_BF16, 2, 128, 4, 2, 32, 256, 512, 96, AMK_MODEL_QKV_BIAS));
  auto shape = [&](const char* name) {
    const Tensor* t = find_tensor(g, name);
    if (!t) return std::string("missing ") + name;
    std::string s = std::to_string(t->kind) + ":" + std::to_string(t->dtype);
    for (int i = 0; i < t->rank; ++i) s += " " + std::to_string(t->shape[i]);
    return s;
  };
  CHECK_EQ(shape("token"), "3:5 1");
  CHECK_EQ(shape("logits"), "4:0 512");
  CHECK_EQ(shape("next_token"), "4:5 1");
  CHECK_EQ(shape("embed"), "0:2 512 128");
  CHECK_EQ(shape("lm_head"), "0:2 512 128");
  CHECK_EQ(shape("rope_inv_freq"), "5:0 16");
  CHECK_EQ(shape("layers.1.wqkv"), "0:2 256 128");
  CHECK_EQ(shape("layers.1.bqkv"), "0:2 256");
  CHECK_EQ(shape("layers.1.wo"), "0:2 128 128");
  CHECK_EQ(shape("layers.1.w_gate_up"), "0:2 512 128");
  CHECK_EQ(shape("layers.1.w_down"), "0:2 128 256");
  CHECK_EQ(shape("kv.1.k"), "2:2 2 96 32");
  CHECK_EQ(shape("kv.0.v"), "2:2 2 96 32");
  CHECK_EQ(shape("layers.0.bo"), "missing layers.0.bo");
}

TEST(tensor_names_are_unique_and_producers_come_first) {
  for (const amk_model_t& model : small_models()) {
    const Graph g = build_decoder(model);
    std::set<std::string> names;
    for (const Tensor& t : g.tensors) CHECK(names.insert(t.name).second);
    std::vector<bool> written(g.tensors.size(), false);
    for (const Node& n : g.nodes) {
      for_inputs(n, [&](int32_t id) { CHECK(g.tensors[id].kind != AMK_KIND_ACTIVATION || written[id]); });
      written[n.out] = true;
    }
  }
}

TEST(row_ranges_of_shared_matrices) {
  const Graph g = build_decoder(make_model(AMK_DTYPE_F32, 1, 64, 4, 2, 16, 128, 256, 32));
  const Node *q = find_node(g, "layers.0.q"), *k = find_node(g, "layers.0.k"), *v = find_node(g, "layers.0.v");
  CHECK(q && k && v && q->weight == k->weight && k->weight == v->weight && q->out == v->out);
  CHECK_EQ(q->row_first + q->row_count, 64);
  CHECK_EQ(k->row_first, 64);
  CHECK_EQ(v->row_first, 96);
  CHECK_EQ(find_node(g, "layers.0.up")->row_first, 128);
  CHECK_EQ(find_node(g, "layers.0.append_v")->x_first, 96);
}

TEST(features_add_operands) {
  const Graph plain = build_decoder(toy_model());
  CHECK(find_node(plain, "layers.0.rope_q")->norm == kNoTensor && find_node(plain, "layers.0.q")->bias == kNoTensor);
  amk_model_t m = toy_model();
  m.features = AMK_MODEL_QK_NORM | AMK_MODEL_MLP_BIAS | AMK_MODEL_O_BIAS | AMK_MODEL_TIED_HEAD;
  const Graph g = build_decoder(m);
  CHECK_EQ(g.tensors[find_node(g, "layers.0.rope_q")->norm].name, "layers.0.q_norm");
  CHECK_EQ(g.tensors[find_node(g, "layers.0.rope_k")->norm].name, "layers.0.k_norm");
  CHECK_EQ(g.tensors[find_node(g, "layers.0.up")->bias].name, "layers.0.b_gate_up");
  CHECK_EQ(g.tensors[find_node(g, "layers.0.down")->bias].name, "layers.0.b_down");
  CHECK_EQ(g.tensors[find_node(g, "layers.0.o")->bias].name, "layers.0.bo");
  CHECK_EQ(g.tensors[find_node(g, "lm_head")->weight].name, "embed");
  CHECK(!find_tensor(g, "lm_head"));
}

TEST(fields_outside_their_domain_are_refused_by_name) {
  struct Row {
    const char* part;
    int32_t amk_model_t::* field;
    int32_t value;
    amk_status status = AMK_ERR_INVALID_ARGUMENT;
  };
  constexpr Row kRows[] = {
      {"model.dtype", &amk_model_t::dtype, -1},
      {"model.dtype", &amk_model_t::dtype, 99},
      {"model.dtype", &amk_model_t::dtype, AMK_DTYPE_F8E4M3, AMK_ERR_UNSUPPORTED},
      {"model.layers", &amk_model_t::layers, 0},
      {"model.layers", &amk_model_t::layers, AMK_MAX_LAYERS + 1},
      {"model.hidden", &amk_model_t::hidden, -64},
      {"model.hidden", &amk_model_t::hidden, AMK_MAX_HIDDEN * 2},
      {"model.hidden", &amk_model_t::hidden, 66, AMK_ERR_UNSUPPORTED},
      {"model.n_heads", &amk_model_t::n_heads, 0},
      {"model.n_heads", &amk_model_t::n_heads, INT32_MAX},
      {"model.n_kv_heads", &amk_model_t::n_kv_heads, 0},
      {"model.n_kv_heads", &amk_model_t::n_kv_heads, 5},
      {"multiple of model.n_kv_heads", &amk_model_t::n_kv_heads, 3, AMK_ERR_UNSUPPORTED},
      {"model.head_dim", &amk_model_t::head_dim, INT32_MIN},
      {"model.head_dim", &amk_model_t::head_dim, 15, AMK_ERR_UNSUPPORTED},
      {"model.head_dim", &amk_model_t::head_dim, 18, AMK_ERR_UNSUPPORTED},
      {"model.ffn", &amk_model_t::ffn, 0},
      {"model.ffn", &amk_model_t::ffn, 130, AMK_ERR_UNSUPPORTED},
      {"model.vocab", &amk_model_t::vocab, AMK_MAX_VOCAB + 1},
      {"model.max_seq", &amk_model_t::max_seq, 0},
      {"model.max_seq", &amk_model_t::max_seq, AMK_MAX_SEQ + 1},
      {"model.features", &amk_model_t::features, 128},
      {"model.full_attention_interval", &amk_model_t::linear_head_dim, 8},
      {"model.full_attention_interval", &amk_model_t::full_attention_interval, -1},
      {"model.linear_value_heads", &amk_model_t::full_attention_interval, 4},
      {"model.features", &amk_model_t::features, -1},
  };
  for (const Row& row : kRows) {
    amk_model_t m = toy_model();
    m.*row.field = row.value;
    EXPECT_ERROR(row.status, row.part, build_decoder(m));
  }
  for (float eps : {0.0f, -1e-5f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    amk_model_t m = toy_model();
    m.eps = eps;
    EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "model.eps", build_decoder(m));
  }
  amk_model_t m = toy_model();
  m.struct_size = sizeof m - 1;
  EXPECT_ERROR(AMK_ERR_INVALID_ARGUMENT, "struct_size", build_decoder(m));
}

TEST(the_largest_model_of_the_domain_builds) {
  const Graph g = build_decoder(
      make_model(AMK_DTYPE_F32, 1, AMK_MAX_HIDDEN, 1 << 16, 1 << 16, 1 << 12, 1 << 24, AMK_MAX_VOCAB, AMK_MAX_SEQ));
  CHECK_EQ(g.nodes.size(), 21u);
}
