/* A C99 program that uses the installed interface: sizes, a target, a default schedule, errors without a crash. */
#include <amk.h>

#include <stdio.h>
#include <string.h>

#define EXPECT(cond)                                    \
  do {                                                  \
    if (!(cond)) {                                      \
      printf("%s:%d: %s\n", __FILE__, __LINE__, #cond); \
      return 1;                                         \
    }                                                   \
  } while (0)

int main(void) {
  amk_target_t target;
  amk_schedule_t schedule;
  amk_program* program = NULL;
  amk_program_tables_t tables;
  amk_report* report = NULL;
  amk_valid_program* valid = NULL;

  EXPECT(sizeof(amk_params_t) == 88 && sizeof(amk_buffer_t) == 96 && sizeof(amk_instruction_t) == 224);
  EXPECT(amk_abi_version() == (AMK_ABI_VERSION_MAJOR << 16 | AMK_ABI_VERSION_MINOR));
  EXPECT(amk_target_preset(0, &target) == AMK_OK && target.sm_count > 0);
  EXPECT(amk_target_preset(-1, &target) == AMK_ERR_INVALID_ARGUMENT && strlen(amk_last_error()) > 0);
  EXPECT(amk_target_preset(0, NULL) == AMK_ERR_INVALID_ARGUMENT);
  EXPECT(amk_target_source(amk_target_count()) == NULL);
  EXPECT(amk_schedule_default(&schedule) == AMK_OK);
  EXPECT(amk_schedule_check(&schedule, &target) == AMK_OK);
  schedule.gemv_n_tile = 17;
  EXPECT(amk_schedule_check(&schedule, &target) == AMK_ERR_REJECTED);
  EXPECT(strstr(amk_last_error(), "N_tile") != NULL);

  /* An empty program is judged, not crashed on. */
  memset(&tables, 0, sizeof tables);
  EXPECT(amk_program_from_tables(&tables, &program) == AMK_ERR_INVALID_ARGUMENT);
  tables.struct_size = sizeof tables;
  EXPECT(amk_program_from_tables(&tables, &program) == AMK_OK);
  EXPECT(amk_program_validate(program, &report, &valid) == AMK_OK);
  EXPECT(amk_report_count(report) > 0 && valid == NULL);
  amk_report_destroy(report);
  amk_program_destroy(program);

  /* NULL is always fine to destroy. */
  amk_program_destroy(NULL);
  amk_valid_program_destroy(NULL);
  amk_report_destroy(NULL);
  amk_image_destroy(NULL);
  amk_vm_destroy(NULL);
  EXPECT(strcmp(amk_status_name(AMK_ERR_REJECTED), "REJECTED") == 0);
  EXPECT(strstr(amk_build_info(), "build_id") != NULL);
  return 0;
}
