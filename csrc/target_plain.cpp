// The kernels for what the compiler takes for granted, and the choice between the targets.
#include <cstdlib>

#include "headers.h"

#define VECTOR_BYTES 16
namespace normwise {
namespace plain {
#include "vector.h"
#include "kernels.h"
#include "rows.h"
#include "lstm.h"
#include "target.h"
}  // namespace plain

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
namespace bfloat16 { template <class T> Layouts<T> list(); }
namespace avx512 { template <class T> Layouts<T> list(); }
namespace avx2 { template <class T> Layouts<T> list(); }

// NORMWISE_VECTOR_BYTES=32 or 16 keeps to narrower vectors, 64 to x86-64-v4: so the tests see every target.
template <class T> Layouts<T> choose() {
  const char* limit = std::getenv("NORMWISE_VECTOR_BYTES");
  const int bytes = limit ? std::atoi(limit) : 64;
  const bool wide = bytes >= 64 && __builtin_cpu_supports("x86-64-v4");
  if constexpr (std::is_same_v<T, BFloat16>)
    if (wide && !limit && __builtin_cpu_supports("avx512bf16")) return bfloat16::list<T>();
  if (wide) return avx512::list<T>();
  if (bytes >= 32 && __builtin_cpu_supports("x86-64-v3")) return avx2::list<T>();
  return plain::list<T>();
}
#else
template <class T> Layouts<T> choose() { return plain::list<T>(); }
#endif

template <class T> const Layouts<T>& kernels() {
  static const Layouts<T> chosen = choose<T>();
  return chosen;
}

template const Layouts<float>& kernels<float>();
template const Layouts<double>& kernels<double>();
template const Layouts<BFloat16>& kernels<BFloat16>();
template const Layouts<Half>& kernels<Half>();

}  // namespace normwise
