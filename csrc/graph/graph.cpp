#include "graph/graph.h"

#include <utility>

#include "base/error.h"

namespace amk {

int32_t Graph::add_tensor(std::string name, int32_t kind, int32_t tensor_dtype, std::initializer_list<int64_t> dims) {
  AMK_CHECK(dims.size() <= AMK_MAX_RANK, AMK_ERR_INTERNAL, "tensor %s of rank %zu", name.c_str(), dims.size());
  Tensor tensor;
  tensor.name = std::move(name);
  tensor.kind = kind;
  tensor.dtype = tensor_dtype;
  for (int64_t d : dims) tensor.shape[tensor.rank++] = d;
  tensors.push_back(std::move(tensor));
  return static_cast<int32_t>(tensors.size()) - 1;
}

std::vector<int32_t> Graph::reader_counts() const {
  std::vector<int32_t> counts(tensors.size(), 0);
  for (const Node& node : nodes) for_inputs(node, [&](int32_t id) { ++counts[id]; });
  return counts;
}

void Graph::drop_unused_tensors() {
  std::vector<int32_t> new_id(tensors.size(), kNoTensor);
  for (const Node& node : nodes) {
    for_inputs(node, [&](int32_t id) { new_id[id] = 0; });
    new_id[node.out] = 0;
  }
  std::vector<Tensor> kept;
  for (size_t id = 0; id < tensors.size(); ++id) {
    if (new_id[id] == kNoTensor) continue;
    new_id[id] = static_cast<int32_t>(kept.size());
    kept.push_back(std::move(tensors[id]));
  }
  for (Node& node : nodes) {
    for_inputs(node, [&](int32_t& id) { id = new_id[id]; });
    node.out = new_id[node.out];
  }
  tensors = std::move(kept);
}

}  // namespace amk
