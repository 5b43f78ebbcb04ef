#include "program/program.h"

#include "base/error.h"

namespace amk {

void Strings::push(std::string_view s) {
  if (offset_.empty()) offset_.push_back(0);
  bytes_.append(s);
  offset_.push_back(bytes_.size());
}

std::string_view Strings::at(int64_t i) const {
  if (i < 0 || i + 1 >= static_cast<int64_t>(offset_.size())) return {};
  return std::string_view(bytes_).substr(offset_[i], offset_[i + 1] - offset_[i]);
}

Strings Strings::from_view(const amk_strings_t& view, int64_t n, const char* what) {
  Strings out;
  if (!view.offset || n == 0) return out;
  AMK_CHECK(view.offset[0] == 0, AMK_ERR_INVALID_ARGUMENT, "%s: first string offset is not 0", what);
  for (int64_t i = 0; i < n; ++i)
    AMK_CHECK(view.offset[i] <= view.offset[i + 1], AMK_ERR_INVALID_ARGUMENT, "%s: string offset %lld falls", what,
              (long long)i);
  const uint64_t total = view.offset[n];
  AMK_CHECK(total < uint64_t{1} << 32 && (total == 0 || view.bytes), AMK_ERR_INVALID_ARGUMENT, "%s: %llu bytes of text",
            what, (unsigned long long)total);
  if (total) out.bytes_.assign(view.bytes, total);
  out.offset_.assign(view.offset, view.offset + n + 1);
  return out;
}

namespace {

template <class T>
void copy_table(std::vector<T>& out, const T* in, int64_t n, int64_t cap, const char* what) {
  AMK_CHECK(n >= 0 && n <= cap, AMK_ERR_INVALID_ARGUMENT, "%lld %s, allowed 0..%lld", (long long)n, what,
            (long long)cap);
  AMK_CHECK(n == 0 || in, AMK_ERR_INVALID_ARGUMENT, "the table of %s is NULL but has %lld entries", what, (long long)n);
  if (n) out.assign(in, in + n);
}

}  // namespace

Program Program::from_tables(const amk_program_tables_t& t) {
  AMK_CHECK(t.struct_size >= sizeof t, AMK_ERR_INVALID_ARGUMENT, "tables.struct_size is %llu, expected %zu",
            (unsigned long long)t.struct_size, sizeof t);
  Program p;
  copy_table(p.buffers, t.buffers, t.n_buffers, AMK_MAX_BUFFERS, "buffers");
  copy_table(p.bindings, t.bindings, t.n_buffers, AMK_MAX_BUFFERS, "bindings");
  copy_table(p.counter_init, t.counter_init, t.n_counters, AMK_MAX_COUNTERS, "counters");
  copy_table(p.tasks, t.tasks, t.n_tasks, AMK_MAX_TASKS, "tasks");
  copy_table(p.pages, t.pages, t.n_pages, AMK_MAX_BUFFERS, "pages");
  p.buffer_name = Strings::from_view(t.buffer_name, t.n_buffers, "buffer_name");
  p.buffer_source = Strings::from_view(t.buffer_source, t.n_buffers, "buffer_source");
  p.task_label = Strings::from_view(t.task_label, t.n_tasks, "task_label");
  p.launch = t.launch;
  p.target = t.target;
  p.target.name[sizeof p.target.name - 1] = '\0';
  return p;
}

amk_program_tables_t Program::view() const {
  amk_program_tables_t t{};
  t.struct_size = sizeof t;
  t.n_buffers = static_cast<int64_t>(buffers.size());
  t.n_counters = static_cast<int64_t>(counter_init.size());
  t.n_tasks = static_cast<int64_t>(tasks.size());
  t.n_pages = static_cast<int64_t>(pages.size());
  t.buffers = buffers.data();
  t.bindings = bindings.data();
  t.counter_init = counter_init.data();
  t.tasks = tasks.data();
  t.pages = pages.data();
  t.buffer_name = buffer_name.view();
  t.buffer_source = buffer_source.view();
  t.task_label = task_label.view();
  t.launch = launch;
  t.target = target;
  return t;
}

amk_buffer_t make_buffer(int32_t dtype, int32_t space, const std::vector<int64_t>& shape) {
  AMK_CHECK(shape.size() <= AMK_MAX_RANK, AMK_ERR_INTERNAL, "a buffer of rank %zu", shape.size());
  amk_buffer_t b{};
  b.dtype = dtype;
  b.space = space;
  b.numel = 1;
  for (int64_t d : shape) {
    b.shape[b.rank++] = d;
    b.numel *= d;
  }
  int64_t step = 1;
  for (int i = b.rank - 1; i >= 0; --i) {
    b.stride[i] = step;
    step *= b.shape[i];
  }
  return b;
}

}  // namespace amk
