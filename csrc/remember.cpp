// Running statistics: one call for what is a dozen small operators, for one memory or several side by side.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>

#include "tensors.h"

namespace normwise {
namespace {

using Optional = std::optional<Tensor>;

void check(const Tensor& t, ScalarType dtype, int64_t values, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.scalar_type() == dtype && t.numel() == values,
                  "normwise: ", name, " must be dense, on the CPU, with ", values, " values of the right dtype, got ",
                  t.numel(), " values");
}

// As torch.lerp rounds it.
template <class A> A lerp(A from, A to, A share) {
  return share < A(0.5) ? from + share * (to - from) : to - (to - from) * (A(1) - share);
}

template <class A> bool finite(const A* mean, const A* var, A unbiasing, int64_t channels) {
  bool all = true;
  for (int64_t i = 0; i < channels; ++i) all &= std::isfinite(mean[i] + var[i] * unbiasing);
  return all;
}

template <class A>
void move_all(const Tensor& mean, const Tensor& var, const Tensor& seen, const Optional& skipped, const Tensor& new_mean,
              const Tensor& new_var, std::optional<double> momentum, A unbiasing) {
  const int64_t memories = seen.numel(), channels = mean.numel() / std::max<int64_t>(1, memories);
  A *m = static_cast<A*>(mean.data_ptr()), *v = static_cast<A*>(var.data_ptr());
  const A *to_m = static_cast<const A*>(new_mean.data_ptr()), *to_v = static_cast<const A*>(new_var.data_ptr());
  int64_t* counts = static_cast<int64_t*>(seen.data_ptr());
  for (int64_t k = 0; k < memories; ++k, m += channels, v += channels, to_m += channels, to_v += channels) {
    if (!finite(to_m, to_v, unbiasing, channels)) {
      if (skipped) ++*static_cast<int64_t*>(skipped->data_ptr());
      continue;
    }
    ++counts[k];
    const A share = A(momentum.value_or(1.0 / double(counts[k])));
    for (int64_t i = 0; i < channels; ++i)
      m[i] = lerp(m[i], to_m[i], share), v[i] = lerp(v[i], to_v[i] * unbiasing, share);
  }
}

// A memory (C,) with a count, or K of them, (K, C) with K counts, moves on by one batch; one that meets inf or NaN
// stays as it is and is counted in `skipped`. Without a momentum: the plain average over all batches. What the variance
// moves to is new_var * unbiasing.
void remember(const Tensor& mean, const Tensor& var, const Tensor& seen, const Optional& skipped,
              const Tensor& new_mean, const Tensor& new_var, std::optional<double> momentum, double unbiasing) {
  const ScalarType dtype = mean.scalar_type();
  const int64_t values = mean.numel();
  check(seen, ScalarType::Long, seen.numel(), "seen");
  STD_TORCH_CHECK(seen.numel() == 0 ? values == 0 : values % seen.numel() == 0,
                  "normwise: ", values, " statistics cannot belong to ", seen.numel(), " memories");
  check(mean, dtype, values, "mean"), check(var, dtype, values, "var");
  check(new_mean, dtype, values, "new_mean"), check(new_var, dtype, values, "new_var");
  if (skipped) check(*skipped, ScalarType::Long, 1, "skipped");
  if (dtype == ScalarType::Double)
    return move_all<double>(mean, var, seen, skipped, new_mean, new_var, momentum, unbiasing);
  STD_TORCH_CHECK(dtype == ScalarType::Float, "normwise: running statistics must be float32 or float64");
  move_all<float>(mean, var, seen, skipped, new_mean, new_var, momentum, float(unbiasing));
}

}  // namespace
}  // namespace normwise

STABLE_TORCH_LIBRARY_FRAGMENT(normwise, m) {
  m.def("remember(Tensor(a!) mean, Tensor(b!) var, Tensor(c!) seen, Tensor(d!)? skipped, Tensor new_mean, "
        "Tensor new_var, float? momentum, float unbiasing=1.0) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(normwise, CPU, m) { m.impl("remember", TORCH_BOX(&normwise::remember)); }
