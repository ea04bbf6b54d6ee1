// What the operators are given, checked and brought to the form the kernels read.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <optional>

#include "tensors.h"

namespace normwise {

using Optional = std::optional<Tensor>;

template <class F> auto dispatch(ScalarType dtype, F f) {
  switch (dtype) {
    case ScalarType::Float: return f(float());
    case ScalarType::Double: return f(double());
    case ScalarType::BFloat16: return f(BFloat16());
    case ScalarType::Half: return f(Half());
    default: STD_TORCH_CHECK(false, "normwise: the dtype must be float32, float64, bfloat16 or float16");
  }
}

inline ScalarType table_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 2, "normwise: the input must be (N, C, *spatial), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(x.is_cpu(), "normwise: the input must be on the CPU");
}

// A table of coefficients as the kernels read it: right dtype, dense. Numel `size` or nothing.
inline Optional as_table(const Optional& t, const Tensor& x, int64_t size, const char* name) {
  if (!t) return t;
  STD_TORCH_CHECK(t->numel() == size, "normwise: ", name, " must have ", size, " values, got ", t->numel());
  const ScalarType dtype = table_dtype(x);
  if (t->scalar_type() == dtype && t->is_contiguous()) return t;
  Tensor fresh = table_like(x, Sizes(t->sizes().begin(), t->sizes().end()), dtype);
  torch::stable::copy_(fresh, *t);
  return fresh;
}

template <class A> const A* pointer(const Optional& t) { return t ? static_cast<const A*>(t->data_ptr()) : nullptr; }
template <class A> A* pointer(const Tensor& t) { return static_cast<A*>(t.data_ptr()); }

inline Activation activation(int64_t kind, double low, double high) {
  STD_TORCH_CHECK(kind >= 0 && kind < kActs, "normwise: unknown activation ", kind);
  return {static_cast<Act>(kind), low, high};
}

// What the output does not fall below, per channel, for the activation that needs it.
inline Optional as_floor(const Optional& floor, const Tensor& x, int64_t act) {
  STD_TORCH_CHECK(floor.has_value() == (act == int64_t(Act::floor)), "normwise: a floor comes with activation ",
                  int64_t(Act::floor), ", got ", act);
  return as_table(floor, x, x.size(1), "floor");
}

// What the backward is given besides g and x; without an activation there are no kernels that would read it.
inline Optional as_extra(const Optional& extra, const Batch& batch, int64_t act) {
  if (!extra) return extra;
  STD_TORCH_CHECK(act != int64_t(Act::none), "normwise: extra needs an activation; without one the gradient of the "
                  "residual is the gradient of the output, so leave extra out");
  return batch.matching(*extra, "extra");
}

// As a tensor of this type holds it.
template <class T> double stored(double value) {
  if constexpr (std::is_same_v<T, BFloat16>) return float(torch::headeronly::BFloat16(float(value)));
  else if constexpr (std::is_same_v<T, Half>) return float(torch::headeronly::Half(float(value)));
  else return T(value);
}

// What most jobs start from.
template <class T>
Job<T> job_of(const Batch& batch, const Activation& act, const Optional& floor, const Optional& extra) {
  Job<T> job;
  job.stream = batch.x.numel() * int64_t(sizeof(T)) >= kPast;
  job.x = batch.grid<const T>(batch.x), job.act = act, job.floor = pointer<Acc<T>>(floor);
  if (act.kind == Act::clip) job.act.low = stored<T>(act.low), job.act.high = stored<T>(act.high);  // outputs tell
  if (extra) job.extra = batch.grid<const T>(*extra);
  return job;
}

// Gradient in; gradients of input and residual out, empty where nobody asks for them.
struct Gradients {
  Gradients(const Batch& batch, const Tensor& g, const Optional& extra, int64_t act, bool input)
      : batch(batch), given(batch.matching(g, "the gradient")), more(as_extra(extra, batch, act)),
        input(input), out(wanted(input)), extra_grad(wanted(input && extra)) {}

  template <class T> Job<T> job(const Activation& act, const Optional& floor = {}) const {
    Job<T> job = job_of<T>(batch, act, floor, more);
    job.g = batch.grid<const T>(given);
    if (input) job.out = batch.grid<T>(out);
    if (input && more) job.extra_grad = batch.grid<T>(extra_grad);
    return job;
  }

  Tensor wanted(bool yes) const { return yes ? batch.like() : table_like(batch.x, {0}, batch.x.scalar_type()); }

  const Batch& batch;
  const Tensor given;
  const Optional more;
  const bool input;
  const Tensor out, extra_grad;
};

}  // namespace normwise
