// Batch, instance and group norm in one call each way: moments, pool, coefficients, apply.
#pragma once
#include <cmath>

#include "parallel.h"

namespace normwise {

// What a norm has besides the tensors of its job; null where there is none. Statistics: N x groups or C.
template <class A> struct Affine {
  const A *weight, *bias;
  double eps;
  double scale(int64_t c, double var) const { return (weight ? weight[c] : 1) / std::sqrt(var + eps); }
  double shift(int64_t c) const { return bias ? bias[c] : 0; }
};

template <class T> class Norm {
  using A = Acc<T>;

 public:
  Norm(Job<T>& job, const Shape& shape, const Pool& pool, const Affine<A>& affine)
      : shape(shape), pool(pool), affine(affine), rows(pool.batch ? 1 : shape.n), whole(job, shape),
        coefficients(numbers<A>(5 * rows * shape.c)), sums(numbers<double>(2 * shape.n * shape.c)) {
    A* table = coefficients.get();
    const int64_t size = rows * shape.c;
    center = table, scale = table + size, shift = table + 2 * size, slope = table + 3 * size;
    offset = table + 4 * size;
    job.table = {center, scale, shift, slope, offset, pool.batch ? 0 : shape.c};
  }

  // Writes the moments it finds.
  void forward(A* mean, A* var) {
    double *m = sums.get(), *d = m + shape.n * shape.c;
    by_regions(
        whole, pool, 2,
        [&](const Region& r) {
          whole.moments(r, m, d);
          set_forward(r, m, d, mean, var);
          whole.scale_shift(r);
        },
        [&] {
          whole.moments(m, d);
          set_forward(everything(), m, d, mean, var);
          whole.scale_shift();
        });
  }

  // With moments from elsewhere: running statistics.
  void forward_given(const A* mean, const A* var) {
    set_given(everything(), mean, var);
    whole.scale_shift();
  }

  // Gradients of input, weight and bias; `fixed`: the moments did not depend on the input.
  void backward(const A* mean, const A* var, bool fixed, bool input, A* weight_grad, A* bias_grad) {
    double *s = sums.get(), *p = s + shape.n * shape.c;
    by_regions(
        whole, pool, 3,
        [&](const Region& r) {
          set_given(r, mean, var);
          whole.reduce_grad(r, s, p);
          if (!input) return;
          set_backward(r, s, p, var, fixed);
          whole.apply_grad(r);
        },
        [&] {
          set_given(everything(), mean, var);
          whole.reduce_grad(s, p);
          if (!input) return;
          set_backward(everything(), s, p, var, fixed);
          whole.apply_grad();
        });
    for (int64_t c = 0; c < shape.c; ++c) {
      double weight = 0, bias = 0;
      for (int64_t n = 0; n < shape.n; ++n) {
        const int64_t at = n * shape.c + c;
        weight += p[at] / std::sqrt(double(var[statistic(n, c)]) + affine.eps);
        bias += s[at];
      }
      if (weight_grad) weight_grad[c] = A(weight);
      if (bias_grad) bias_grad[c] = A(bias);
    }
  }

 private:
  Region everything() const { return {0, shape.n, 0, shape.c}; }
  int64_t statistic(int64_t n, int64_t c) const {
    return pool.batch ? c : n * pool.groups + c / pool.channels(shape);
  }

  // f(first channel, first row of the coefficients, number of planes, their distance in a table)
  template <class F> void each_pool(const Region& r, F f) const {
    const int64_t width = pool.channels(shape), end = pool.batch ? r.n0 + 1 : r.n1;
    for (int64_t n = r.n0; n < end; ++n)
      for (int64_t c = r.c0; c < r.c1; c += width)
        f(n, c, pool.batch ? shape.n : width, pool.batch ? shape.c : 1);
  }

  void set_forward(const Region& r, const double* m, const double* d, A* mean, A* var) {
    each_pool(r, [&](int64_t n, int64_t c0, int64_t count, int64_t step) {
      const int64_t at = n * shape.c + c0;
      const Moments all = pooled(m + at, d + at, step, count, double(shape.s));
      const double variance = all.deviations / (double(count) * double(shape.s));
      mean[statistic(n, c0)] = A(all.mean), var[statistic(n, c0)] = A(variance);
      set_affine(n, c0, all.mean, variance);
    });
  }

  void set_given(const Region& r, const A* mean, const A* var) {
    each_pool(r, [&](int64_t n, int64_t c0, int64_t, int64_t) {
      set_affine(n, c0, mean[statistic(n, c0)], var[statistic(n, c0)]);
    });
  }

  void set_affine(int64_t n, int64_t c0, double mean, double var) {
    for (int64_t c = c0; c < c0 + pool.channels(shape); ++c) {
      const int64_t at = (pool.batch ? 0 : n * shape.c) + c;
      const double factor = affine.scale(c, var);
      center[at] = A(mean), scale[at] = A(factor);
      // what the mean loses by rounding goes into the shift
      shift[at] = A(affine.shift(c) + (std::isfinite(mean) ? (center[at] - mean) * factor : 0));
    }
  }

  void set_backward(const Region& r, const double* s, const double* p, const A* var, bool fixed) {
    each_pool(r, [&](int64_t n, int64_t c0, int64_t count, int64_t step) {
      double sum = 0, product = 0;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t c = pool.batch ? c0 : c0 + k, at = n * shape.c + c0 + k * step;
        sum += s[at] * (affine.weight ? affine.weight[c] : 1);
        product += p[at] * (affine.weight ? affine.weight[c] : 1);
      }
      const double rstd = 1 / std::sqrt(double(var[statistic(n, c0)]) + affine.eps);
      const double share = fixed ? 0 : rstd / (double(count) * double(shape.s));
      for (int64_t c = c0; c < c0 + pool.channels(shape); ++c) {
        const int64_t at = (pool.batch ? 0 : n * shape.c) + c;
        slope[at] = fixed ? 0 : A(-product * share * rstd * rstd);
        offset[at] = fixed ? 0 : A(-sum * share);
      }
    });
  }

  const Shape shape;
  const Pool pool;
  const Affine<A> affine;
  const int64_t rows;
  Whole<T> whole;
  std::unique_ptr<A[]> coefficients;
  std::unique_ptr<double[]> sums;
  A *center, *scale, *shift, *slope, *offset;
};

}  // namespace normwise
