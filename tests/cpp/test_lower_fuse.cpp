// When attention may turn this step's heads itself: only where q, k and v are back to back in one tensor, the key is
// appended as it would be turned, the value raw, and nobody else looks at the turned queries or the caches.
#include <stdexcept>

#include "lower/passes.h"
#include "lower_models.h"

using namespace amk;

namespace {

constexpr int32_t kBoth = AMK_FUSE_ROPE_KV_APPEND | AMK_FUSE_ROPE_ATTENTION;

Node& node(Graph& g, const std::string& name) {
  for (Node& n : g.nodes)
    if (n.name == name) return n;
  throw std::runtime_error("no node " + name);
}
size_t index_of(Graph& g, const std::string& name) { return static_cast<size_t>(&node(g, name) - g.nodes.data()); }

amk_model_t model(int32_t features = AMK_MODEL_QK_NORM) {
  return make_model(AMK_DTYPE_F32, 2, 64, 4, 2, 16, 128, 256, 64, features);
}

}  // namespace

TEST(attention_takes_over_the_rotation) {
  for (int32_t features : {0, static_cast<int32_t>(AMK_MODEL_QK_NORM)}) {
    Graph plain = build_decoder(model(features)), fused = fuse(plain, kBoth);
    for (const std::string layer : {"layers.0.", "layers.1."}) {
      const Node& a = node(fused, layer + "attention");
      const auto name = [&](int32_t id) { return id == kNoTensor ? std::string() : fused.tensors[id].name; };
      CHECK_EQ(name(a.x), layer + "qkv");
      CHECK_EQ(name(a.inv_freq), std::string("rope_inv_freq"));
      CHECK_EQ(name(a.norm), features ? layer + "q_norm" : "");
      CHECK_EQ(name(a.k_norm), features ? layer + "k_norm" : "");
      CHECK_EQ(a.x_first, 0);
      const size_t at = index_of(fused, layer + "attention");
      CHECK_EQ(index_of(fused, layer + "append_k"), at + 1);
      CHECK_EQ(index_of(fused, layer + "append_v"), at + 2);
      CHECK_EQ(index_of(fused, layer + "o"), at + 3);
    }
    CHECK_EQ(fused.nodes.size() + 2 * 2, plain.nodes.size());  // rope_q and rope_k of each layer
  }
}

TEST(attention_of_another_pattern_is_left_alone) {
  const struct {
    const char* what;
    int32_t fusion;
    void (*change)(Graph&);
  } kOthers[] = {
      {"a key that is turned before its append", AMK_FUSE_ROPE_ATTENTION, [](Graph&) {}},
      {"v from elsewhere", kBoth, [](Graph& g) { node(g, "layers.0.append_v").x = node(g, "layers.1.q").out; }},
      {"v of other rows", kBoth, [](Graph& g) { node(g, "layers.0.append_v").x_first -= 16; }},
      {"k of other rows", kBoth, [](Graph& g) { node(g, "layers.0.rope_k").x_first -= 16; }},
      {"k from elsewhere", kBoth, [](Graph& g) { node(g, "layers.0.rope_k").x = node(g, "layers.1.q").out; }},
      {"q of other rows", kBoth, [](Graph& g) { node(g, "layers.0.rope_q").x_first += 16; }},
      {"half of the query heads", kBoth, [](Graph& g) { node(g, "layers.0.rope_q").heads = 2; }},
      {"half of the value heads", kBoth, [](Graph& g) { node(g, "layers.0.append_v").heads = 1; }},
      {"half of the turned queries", kBoth, [](Graph& g) { node(g, "layers.0.attention").x_first = 16; }},
      {"k turned by another table", kBoth,
       [](Graph& g) {
         node(g, "layers.0.rope_k").inv_freq = g.add_tensor("other", AMK_KIND_CONST, AMK_DTYPE_F32, {8});
       }},
      {"v turned", kBoth,
       [](Graph& g) { node(g, "layers.0.append_v").inv_freq = node(g, "layers.0.rope_q").inv_freq; }},
      {"v normalised", kBoth, [](Graph& g) { node(g, "layers.0.append_v").norm = node(g, "layers.0.rope_k").norm; }},
      {"q normalised, k not", kBoth, [](Graph& g) { node(g, "layers.0.rope_k").norm = kNoTensor; }},
      {"k normalised, q not", kBoth, [](Graph& g) { node(g, "layers.0.rope_q").norm = kNoTensor; }},
      {"someone else reads the turned queries", kBoth,
       [](Graph& g) { node(g, "layers.0.o").x = node(g, "layers.0.rope_q").out; }},
      {"someone else reads the cache", kBoth,
       [](Graph& g) { node(g, "layers.1.attention").k_cache = node(g, "layers.0.attention").k_cache; }},
      {"one cache for k and v", kBoth,
       [](Graph& g) { node(g, "layers.0.attention").v_cache = node(g, "layers.0.attention").k_cache; }},
      {"queries in two parts", kBoth,
       [](Graph& g) {
         Node half = node(g, "layers.0.rope_q");
         g.nodes.insert(g.nodes.begin() + static_cast<int64_t>(index_of(g, "layers.0.rope_q")), half);
       }},
  };
  for (const auto& other : kOthers) {
    Graph g = build_decoder(model());
    other.change(g);
    Graph fused = fuse(g, other.fusion);
    const Node& a = node(fused, "layers.0.attention");
    const bool alone = a.inv_freq == kNoTensor && a.norm == kNoTensor && a.k_norm == kNoTensor;
    if (!alone || index_of(fused, "layers.0.append_v") > index_of(fused, "layers.0.attention"))
      check::fail(other.what, 0, "attention turns the heads itself");
  }
}
