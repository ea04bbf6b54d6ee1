// The kernels for x86-64-v4.
#include "headers.h"
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("arch=x86-64-v4")
#define VECTOR_BYTES 64
namespace normwise::avx512 {
#include "vector.h"
#include "kernels.h"
#include "rows.h"
#include "lstm.h"
#include "target.h"
}  // namespace normwise::avx512
#endif
