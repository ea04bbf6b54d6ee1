// Everything the kernels include, outside any target's namespace and options: a standard function compiled
// for AVX-512 would otherwise replace the plain one at link time.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include "job.h"
