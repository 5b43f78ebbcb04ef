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

/* Four tokens a step through this header alone: with weights of zero every logit is 0, and the choice the lowest. */
static int decode_four(void) {
  static long double zeros[256 * 64 * sizeof(float) / 16]; /* as large as any weight below, and aligned to 16 bytes */
  const int32_t tokens[4] = {1, 2, 3, 255};
  int32_t next[4] = {-1, -1, -1, -1}, i;
  float logits[4 * 256];
  amk_target_t target;
  amk_schedule_t schedule;
  amk_model_t model;
  amk_vm_options_t options;
  amk_program_tables_t tables;
  amk_program* program = NULL;
  amk_valid_program* valid = NULL;
  amk_image* image = NULL;
  amk_vm* vm = NULL;

  memset(&model, 0, sizeof model);
  model.struct_size = sizeof model;
  model.layers = 1, model.hidden = 64, model.n_heads = 4, model.n_kv_heads = 2, model.head_dim = 16;
  model.ffn = 64, model.vocab = 256, model.max_seq = 16, model.eps = 1e-5f;
  EXPECT(amk_target_preset(0, &target) == AMK_OK && amk_schedule_default(&schedule) == AMK_OK);
  model.batch = AMK_MAX_BATCH + 1;
  EXPECT(amk_program_lower(&model, &schedule, &target, &program) == AMK_ERR_UNSUPPORTED);
  EXPECT(strstr(amk_last_error(), "model.batch is 17") != NULL);
  model.batch = 4;
  EXPECT(amk_program_lower(&model, &schedule, &target, &program) == AMK_OK);
  EXPECT(amk_program_validate_model(program, &model, NULL, &valid) == AMK_OK && valid != NULL);
  EXPECT(amk_image_pack(valid, &image) == AMK_OK);
  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  EXPECT(amk_vm_create_reference(image, &options, &vm) == AMK_OK);
  memset(&tables, 0, sizeof tables);
  tables.struct_size = sizeof tables;
  EXPECT(amk_program_tables(program, &tables) == AMK_OK);
  for (i = 0; i < tables.n_buffers; ++i) {
    const uint64_t first = tables.buffer_source.offset[i], count = tables.buffer_source.offset[i + 1] - first;
    char name[64];
    if (count == 0) continue;
    EXPECT(count < sizeof name && tables.buffers[i].numel * sizeof(float) <= sizeof zeros);
    memcpy(name, tables.buffer_source.bytes + first, count);
    name[count] = 0;
    EXPECT(amk_vm_bind(vm, name, zeros, tables.buffers[i].numel * sizeof(float)) == AMK_OK);
  }
  EXPECT(amk_vm_decode(vm, 1, 0, next) == AMK_ERR_UNSUPPORTED);
  EXPECT(amk_vm_decode_batch(vm, tokens, 3, 0, next) == AMK_ERR_INVALID_ARGUMENT);
  EXPECT(amk_vm_decode_batch(vm, tokens, 4, 13, next) == AMK_ERR_INVALID_ARGUMENT);
  EXPECT(amk_vm_decode_batch(vm, NULL, 4, 0, next) == AMK_ERR_INVALID_ARGUMENT);
  EXPECT(amk_vm_decode_batch(vm, tokens, 4, 0, NULL) == AMK_ERR_INVALID_ARGUMENT);
  EXPECT(amk_vm_decode_batch(NULL, tokens, 4, 0, next) == AMK_ERR_INVALID_ARGUMENT);
  EXPECT(next[0] == -1);
  EXPECT(amk_vm_decode_batch(vm, tokens, 4, 12, next) == AMK_OK);
  EXPECT(amk_vm_read(vm, "logits", 0, logits, sizeof logits) == AMK_OK);
  for (i = 0; i < 4; ++i) EXPECT(next[i] == 0 && logits[256 * i + 255] == 0);
  amk_vm_destroy(vm);
  amk_image_destroy(image);
  amk_valid_program_destroy(valid);
  amk_program_destroy(program);
  return 0;
}

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
  return decode_four();
}
