// Binding: check, dispatch on dtype and layout, register (LibTorch stable ABI). No arithmetic.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "arguments.h"
#include "norm.h"

namespace normwise {
namespace {

// Rows of all instances seen as those of one: channels-last batch norm has one row per position anyway.
template <class T> void join_instances(Job<T>& job, Shape& shape) {
  const auto joined = [&](Strides by) { return shape.s == 1 || shape.n == 1 || by.n == shape.s * by.s; };
  if (!shape.rows || !joined(job.x.by) || (job.g.data && !joined(job.g.by)) ||
      (job.extra.data && !joined(job.extra.by))) return;
  for (Strides* by : {&job.x.by, &job.g.by, &job.extra.by, &job.out.by, &job.extra_grad.by})
    if (shape.s == 1) by->s = by->n;
  shape.s *= shape.n, shape.n = 1;
}

// --- the four kernels on tables of N x C or 1 x C ---

std::tuple<Tensor, Tensor> moments(const Tensor& given) {
  check(given);
  const Batch batch(given);
  const Shape& shape = batch.shape;
  Tensor mean = table_like(given, {shape.n, shape.c}, table_dtype(given));
  Tensor var = table_like(given, {shape.n, shape.c}, table_dtype(given));
  dispatch(given.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    Job<T> job;
    job.x = batch.grid<const T>(batch.x);
    const int64_t size = shape.n * shape.c;
    const auto sums = numbers<double>(2 * size);
    if (shape.s > 0) Whole<T>(job, shape).moments(sums.get(), sums.get() + size);
    A *m = pointer<A>(mean), *v = pointer<A>(var);
    for (int64_t i = 0; i < size; ++i) {
      m[i] = shape.s ? A(sums[i]) : A(NAN);
      v[i] = shape.s ? A(sums[size + i] / double(shape.s)) : A(NAN);
    }
  });
  return {mean, var};
}

// The coefficients of a raw kernel, brought to one row length; missing ones are `missing`.
class Tables {
 public:
  Tables(const Batch& batch, std::initializer_list<Optional> given, std::initializer_list<double> missing)
      : full(false) {
    const Shape& shape = batch.shape;
    for (const Optional& t : given) full |= t && t->numel() != shape.c;
    const Sizes sizes{full ? shape.n : 1, shape.c};
    auto value = missing.begin();
    for (const Optional& t : given) {
      if (t) STD_TORCH_CHECK(t->numel() == shape.c || t->numel() == shape.n * shape.c,
                             "normwise: a coefficient must have C or N x C values, got ", t->numel());
      const bool fits = t && (t->numel() == shape.c) == !full && t->is_contiguous() &&
                        t->scalar_type() == table_dtype(batch.x);
      Tensor table = fits ? *t : table_like(batch.x, sizes, table_dtype(batch.x));
      if (!fits && t) torch::stable::copy_(table, *t);
      if (!fits && !t) torch::stable::fill_(table, *value);
      tables.push_back(table), ++value;
    }
  }

  template <class A> const A* at(size_t i) const { return i < tables.size() ? pointer<A>(tables[i]) : nullptr; }
  template <class A> Coefficients<A> coefficients(int64_t channels) const {
    return {at<A>(0), at<A>(1), at<A>(2), at<A>(3), at<A>(4), full ? channels : 0};
  }

 private:
  bool full;
  std::vector<Tensor> tables;
};

Tensor scale_shift(const Tensor& given, const Tensor& scale, const Tensor& shift, const Optional& center,
                   const Optional& residual, int64_t act, double low, double high) {
  check(given);
  const Batch batch(given);
  as_floor({}, given, act);
  const Tables tables(batch, {center, scale, shift}, {0, 1, 0});
  const Optional extra = residual ? Optional(batch.matching(*residual, "residual")) : Optional();
  Tensor out = batch.like();
  if (given.numel() == 0) return out;
  dispatch(given.scalar_type(), [&](auto type) {
    using T = decltype(type);
    Job<T> job = job_of<T>(batch, activation(act, low, high), {}, extra);
    job.out = batch.grid<T>(out), job.table = tables.coefficients<Acc<T>>(batch.shape.c);
    Whole<T>(job, batch.shape).scale_shift();
  });
  return out;
}

std::tuple<Tensor, Tensor> reduce_grad(const Tensor& g, const Tensor& given, const Optional& center,
                                       const Optional& scale, const Optional& shift, const Optional& extra,
                                       int64_t act, double low, double high) {
  check(given);
  const Batch batch(given);
  const Shape& shape = batch.shape;
  as_floor({}, given, act);
  const Tables tables(batch, {center, scale, shift}, {0, 1, 0});
  const Gradients grads(batch, g, extra, act, false);
  Tensor sums = table_like(given, {shape.n, shape.c}, table_dtype(given));
  Tensor products = table_like(given, {shape.n, shape.c}, table_dtype(given));
  dispatch(given.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    Job<T> job = grads.job<T>(activation(act, low, high));
    job.table = tables.coefficients<A>(shape.c);
    const int64_t size = shape.n * shape.c;
    const auto all = numbers<double>(2 * size);
    double *s = all.get(), *p = s + size;
    std::fill_n(s, 2 * size, 0.0);
    if (given.numel()) Whole<T>(job, shape).reduce_grad(s, p);
    std::copy_n(s, size, pointer<A>(sums)), std::copy_n(p, size, pointer<A>(products));
  });
  return {sums, products};
}

std::tuple<Tensor, Tensor> apply_grad(const Tensor& g, const Tensor& given, const Tensor& scale, const Tensor& slope,
                                      const Tensor& offset, const Optional& center, const Optional& shift,
                                      const Optional& extra, int64_t act, double low, double high) {
  check(given);
  const Batch batch(given);
  as_floor({}, given, act);
  const Tables tables(batch, {center, scale, shift, slope, offset}, {0, 1, 0, 0, 0});
  const Gradients grads(batch, g, extra, act, true);
  if (given.numel() == 0) return {grads.out, grads.extra_grad};
  dispatch(given.scalar_type(), [&](auto type) {
    using T = decltype(type);
    Job<T> job = grads.job<T>(activation(act, low, high));
    job.table = tables.coefficients<Acc<T>>(batch.shape.c);
    Whole<T>(job, batch.shape).apply_grad();
  });
  return {grads.out, grads.extra_grad};
}

// --- the closed forms; groups == 0: batch norm ---

Pool pool_of(const Shape& shape, int64_t groups) {
  STD_TORCH_CHECK(groups >= 0 && (groups == 0 || shape.c % groups == 0), "normwise: ", shape.c,
                  " channels cannot be split into ", groups, " groups");
  return {groups == 0, groups};
}

std::tuple<Tensor, Tensor, Tensor> norm(const Tensor& given, const Optional& weight, const Optional& bias,
                                        const Optional& mean, const Optional& var, const Optional& residual,
                                        int64_t groups, double eps, int64_t act, double low, double high,
                                        const Optional& floor, bool about_zero) {
  check(given);
  const Batch batch(given);
  const Pool pool = pool_of(batch.shape, groups);
  const Optional floors = as_floor(floor, given, act);
  const Sizes sizes = pool.batch ? Sizes{batch.shape.c} : Sizes{batch.shape.n, groups};
  const int64_t size = pool.batch ? sizes[0] : sizes[0] * sizes[1];
  const Optional w = as_table(weight, given, batch.shape.c, "weight"), b = as_table(bias, given, batch.shape.c, "bias");
  const Optional m = as_table(mean, given, size, "mean"), v = as_table(var, given, size, "var");
  STD_TORCH_CHECK(m.has_value() == v.has_value(), "normwise: mean and var come together");
  const Optional extra = residual ? Optional(batch.matching(*residual, "residual")) : Optional();
  Tensor out = batch.like();
  Tensor new_mean = table_like(given, m ? Sizes{0} : sizes, table_dtype(given));
  Tensor new_var = table_like(given, m ? Sizes{0} : sizes, table_dtype(given));
  dispatch(given.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    if (given.numel() == 0) {
      std::fill_n(pointer<A>(new_mean), new_mean.numel(), A(NAN));
      std::fill_n(pointer<A>(new_var), new_var.numel(), A(NAN));
      return;
    }
    Job<T> job = job_of<T>(batch, activation(act, low, high), floors, extra);
    job.out = batch.grid<T>(out);
    Shape shape = batch.shape;
    if (pool.batch) join_instances(job, shape);
    Norm<T> norm(job, shape, pool, {pointer<A>(w), pointer<A>(b), eps, about_zero});
    if (m) norm.forward_given(pointer<A>(m), pointer<A>(v));
    else norm.forward(pointer<A>(new_mean), pointer<A>(new_var));
  });
  return {out, new_mean, new_var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> norm_backward(
    const Tensor& g, const Tensor& given, const Tensor& mean, const Tensor& var, const Optional& weight,
    const Optional& bias, const Optional& extra, int64_t groups, double eps, int64_t act, double low, double high,
    bool fixed, bool input, const Optional& floor, bool about_zero) {
  check(given);
  const Batch batch(given);
  const Pool pool = pool_of(batch.shape, groups);
  const Optional floors = as_floor(floor, given, act);
  const int64_t channels = batch.shape.c, size = pool.batch ? channels : batch.shape.n * groups;
  const Optional w = as_table(weight, given, channels, "weight"), b = as_table(bias, given, channels, "bias");
  const Optional m = as_table(mean, given, size, "mean"), v = as_table(var, given, size, "var");
  const Gradients grads(batch, g, extra, act, input);
  Tensor weight_grad = table_like(given, {channels}, table_dtype(given));
  Tensor bias_grad = table_like(given, {channels}, table_dtype(given));
  Tensor floor_grad = table_like(given, {floor ? channels : 0}, table_dtype(given));
  dispatch(given.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    A *wg = pointer<A>(weight_grad), *bg = pointer<A>(bias_grad), *fg = pointer<A>(floor_grad);
    if (given.numel() == 0) {
      std::fill_n(wg, channels, A(0)), std::fill_n(bg, channels, A(0)), std::fill_n(fg, floor_grad.numel(), A(0));
      return;
    }
    Job<T> job = grads.job<T>(activation(act, low, high), floors);
    Shape shape = batch.shape;
    if (pool.batch) join_instances(job, shape);
    Norm<T>(job, shape, pool, {pointer<A>(w), pointer<A>(b), eps, about_zero})
        .backward(pointer<A>(m), pointer<A>(v), fixed, input, wg, bg, fg);
  });
  return {grads.out, weight_grad, bias_grad, grads.extra_grad, floor_grad};
}

}  // namespace
}  // namespace normwise

STABLE_TORCH_LIBRARY(normwise, m) {
  m.def("moments(Tensor x) -> (Tensor, Tensor)");
  m.def("scale_shift(Tensor x, Tensor scale, Tensor shift, Tensor? center, Tensor? residual, int act, float low, "
        "float high) -> Tensor");
  m.def("reduce_grad(Tensor g, Tensor x, Tensor? center, Tensor? scale, Tensor? shift, Tensor? extra, int act, "
        "float low, float high) -> (Tensor, Tensor)");
  m.def("apply_grad(Tensor g, Tensor x, Tensor scale, Tensor slope, Tensor offset, Tensor? center, Tensor? shift, "
        "Tensor? extra, int act, float low, float high) -> (Tensor, Tensor)");
  m.def("norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, Tensor? residual, int groups, "
        "float eps, int act, float low, float high, Tensor? floor=None, bool about_zero=False) "
        "-> (Tensor, Tensor, Tensor)");
  m.def("norm_backward(Tensor g, Tensor x, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, Tensor? extra, "
        "int groups, float eps, int act, float low, float high, bool fixed, bool input, Tensor? floor=None, "
        "bool about_zero=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(normwise, CPU, m) {
  m.impl("moments", TORCH_BOX(&normwise::moments));
  m.impl("scale_shift", TORCH_BOX(&normwise::scale_shift));
  m.impl("reduce_grad", TORCH_BOX(&normwise::reduce_grad));
  m.impl("apply_grad", TORCH_BOX(&normwise::apply_grad));
  m.impl("norm", TORCH_BOX(&normwise::norm));
  m.impl("norm_backward", TORCH_BOX(&normwise::norm_backward));
}
