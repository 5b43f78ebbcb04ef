// The header from C++, with an owner type of the user's own.
#include <amk.h>

#include <cstdio>
#include <memory>

struct ProgramDeleter {
  void operator()(amk_program* p) const { amk_program_destroy(p); }
};

int main() {
  amk_program_tables_t tables{};
  tables.struct_size = sizeof tables;
  amk_program* raw = nullptr;
  if (amk_program_from_tables(&tables, &raw) != AMK_OK) return 1;
  std::unique_ptr<amk_program, ProgramDeleter> program(raw);
  amk_report* report = nullptr;
  if (amk_program_validate(program.get(), &report, nullptr) != AMK_OK) return 1;
  std::printf("an empty program has %lld rejections\n", static_cast<long long>(amk_report_count(report)));
  const bool refused = amk_report_count(report) > 0;
  amk_report_destroy(report);
  return refused ? 0 : 1;
}
