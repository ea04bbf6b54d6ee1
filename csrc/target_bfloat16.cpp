// The kernels for bfloat16 on x86-64-v4 with AVX512-BF16, which rounds to bfloat16 in one instruction.
#include "headers.h"
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("arch=x86-64-v4,avx512bf16")
#define VECTOR_BYTES 64
#define VECTOR_BFLOAT16
namespace normwise::bfloat16 {
#include "vector.h"
#include "kernels.h"
#include "rows.h"
#include "lstm.h"
#include "target.h"
}  // namespace normwise::bfloat16
#endif
