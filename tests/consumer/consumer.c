/* A C program against the installed library: lowers a small model, proves it, packs it and prints the hash. */
#include <amk.h>
#include <stdio.h>

int main(void) {
  amk_model_t model = {.struct_size = sizeof model,
                       .dtype = AMK_DTYPE_BF16,
                       .layers = 2,
                       .hidden = 64,
                       .n_heads = 4,
                       .n_kv_heads = 2,
                       .head_dim = 16,
                       .ffn = 128,
                       .vocab = 256,
                       .max_seq = 128,
                       .features = AMK_MODEL_TIED_HEAD,
                       .eps = 1e-5f};
  amk_schedule_t schedule;
  amk_target_t target;
  amk_program* program = NULL;
  amk_valid_program* valid = NULL;
  amk_image* image = NULL;
  char hash[65];
  if (amk_schedule_default(&schedule) || amk_target_preset(1, &target) ||
      amk_program_lower(&model, &schedule, &target, &program) || amk_program_validate(program, NULL, &valid) ||
      valid == NULL || amk_image_pack(valid, &image) || amk_image_hash(image, hash)) {
    fprintf(stderr, "%s\n", amk_last_error());
    return 1;
  }
  printf("%s %s\n", target.name, hash);
  amk_image_destroy(image);
  amk_valid_program_destroy(valid);
  amk_program_destroy(program);
  return 0;
}
