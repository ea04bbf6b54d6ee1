// Batch, instance and group norm in one call each way: moments, pool, coefficients, apply.
#pragma once
#include <cmath>

#include "parallel.h"

namespace normwise {

// What a norm has besides the tensors of its job; null where there is none. Statistics: N x groups or C.
template <class A> struct Affine {
  const A *weight, *bias;
  double eps;
  double scale(int64_t c) const { return weight ? weight[c] : 1; }
  double shift(int64_t c) const { return bias ? bias[c] : 0; }
};

template <class T> class Norm {
  using A = Acc<T>;

 public:
  Norm(Job<T>& job, const Shape& shape, const Pool& pool, const Affine<A>& affine)
      : shape(shape), pool(pool), affine(affine), unit(pool.channels(shape)),
        merged(!pool.batch && (unit == 1 || (!shape.rows && job.x.by.c == shape.s))), whole(job, shape),
        groups(job), grouped(groups, merged ? Shape{shape.n, pool.groups, unit * shape.s, shape.rows} : shape),
        coefficients(numbers<A>(5 * (pool.batch ? 1 : shape.n) * shape.c)),
        sums(numbers<double>((2 * shape.n + 2) * shape.c)),
        rstd(numbers<double>(pool.batch ? shape.c : shape.n * pool.groups)) {
    A* table = coefficients.get();
    const int64_t size = (pool.batch ? 1 : shape.n) * shape.c;
    center = table, scale = table + size, shift = table + 2 * size, slope = table + 3 * size;
    offset = table + 4 * size;
    job.table = {center, scale, shift, slope, offset, pool.batch ? 0 : shape.c};
    if (merged) groups.x.by.c *= unit;  // a group of planes without gaps is one plane
    count = double(shape.s) * double(unit) * double(pool.batch ? shape.n : 1);
    first = sums.get(), second = first + shape.n * shape.c, total = second + shape.n * shape.c;
  }

  // Writes the moments it finds.
  void forward(A* mean, A* var) {
    by_regions(
        whole, pool, 2,
        [&](const Region& r) {
          grouped.moments(merged ? Region{r.n0, r.n1, r.c0 / unit, r.c1 / unit} : r, first, second);
          set_forward(r, mean, var);
          whole.scale_shift(r);
        },
        [&] {
          grouped.moments(first, second);
          set_forward(everything(), mean, var);
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
    by_regions(
        whole, pool, 3,
        [&](const Region& r) {
          set_given(r, mean, var);
          whole.reduce_grad(r, first, second);
          if (!input) return;
          set_backward(r, fixed);
          whole.apply_grad(r);
        },
        [&] {
          set_given(everything(), mean, var);
          whole.reduce_grad(first, second);
          if (!input) return;
          set_backward(everything(), fixed);
          whole.apply_grad();
        });
    set_affine_grads(weight_grad, bias_grad);
  }

 private:
  Region everything() const { return {0, shape.n, 0, shape.c}; }

  // f(statistic, its instance (0 for batch), its first channel)
  template <class F> void each_statistic(const Region& r, F f) const {
    if (pool.batch) {
      for (int64_t c = r.c0; c < r.c1; ++c) f(c, 0, c);
      return;
    }
    for (int64_t n = r.n0; n < r.n1; ++n)
      for (int64_t c = r.c0, k = n * pool.groups + c / unit; c < r.c1; c += unit, ++k) f(k, n, c);
  }

  // Row by row, because that is how the table lies in memory.
  template <class F> void add_rows(const Region& r, double* to, F f) const {
    std::fill(to + r.c0, to + r.c1, 0.0);
    for (int64_t n = r.n0; n < r.n1; ++n)
      for (int64_t c = r.c0; c < r.c1; ++c) to[c] += f(n * shape.c + c, c);
  }

  Moments moments_of(int64_t k, int64_t n, int64_t c) const {
    if (pool.batch) return {total[c], total[shape.c + c]};
    if (merged) return {first[k], second[k]};
    return pooled(first + n * shape.c + c, second + n * shape.c + c, unit, double(shape.s));
  }

  void set_forward(const Region& r, A* mean, A* var) {
    if (pool.batch) {
      const double share = 1.0 / double(shape.n), size = shape.n > 1 ? double(shape.s) : 0;
      add_rows(r, total, [&](int64_t at, int64_t) { return first[at] * share; });
      add_rows(r, total + shape.c, [&](int64_t at, int64_t c) {
        const double delta = first[at] - total[c];
        return second[at] + delta * delta * size;
      });
    }
    each_statistic(r, [&](int64_t k, int64_t n, int64_t c) {
      const Moments all = moments_of(k, n, c);
      const double variance = all.deviations / count;
      mean[k] = A(all.mean), var[k] = A(variance);
      set_affine(k, n, c, all.mean, variance);
    });
  }

  void set_given(const Region& r, const A* mean, const A* var) {
    each_statistic(r, [&](int64_t k, int64_t n, int64_t c) { set_affine(k, n, c, mean[k], var[k]); });
  }

  void set_affine(int64_t k, int64_t n, int64_t c0, double mean, double var) {
    const A near = A(mean);
    const double lost = std::isfinite(mean) ? near - mean : 0;  // what rounding takes from the mean the shift gives
    rstd[k] = 1 / std::sqrt(var + affine.eps);
    for (int64_t c = c0, at = n * shape.c + c0; c < c0 + unit; ++c, ++at) {
      const double factor = affine.scale(c) * rstd[k];
      center[at] = near, scale[at] = A(factor), shift[at] = A(affine.shift(c) + lost * factor);
    }
  }

  void set_backward(const Region& r, bool fixed) {
    if (pool.batch) {
      add_rows(r, total, [&](int64_t at, int64_t c) { return first[at] * affine.scale(c); });
      add_rows(r, total + shape.c, [&](int64_t at, int64_t c) { return second[at] * affine.scale(c); });
    }
    each_statistic(r, [&](int64_t k, int64_t n, int64_t c0) {
      const int64_t begin = n * shape.c + c0;
      double sum = pool.batch ? total[c0] : 0, product = pool.batch ? total[shape.c + c0] : 0;
      for (int64_t i = 0; i < unit && !pool.batch; ++i) {
        sum += first[begin + i] * affine.scale(c0 + i);
        product += second[begin + i] * affine.scale(c0 + i);
      }
      const double share = fixed ? 0 : rstd[k] / count;
      std::fill_n(slope + begin, unit, fixed ? 0 : A(-product * share * rstd[k] * rstd[k]));
      std::fill_n(offset + begin, unit, fixed ? 0 : A(-sum * share));
    });
  }

  void set_affine_grads(A* weight_grad, A* bias_grad) {
    double* weight = total + shape.c;
    add_rows(everything(), total, [&](int64_t at, int64_t) { return first[at]; });
    std::fill_n(weight, shape.c, 0.0);
    for (int64_t n = 0; n < shape.n; ++n)
      for (int64_t c = 0, k = pool.batch ? 0 : n * pool.groups; c < shape.c; ++k)
        for (const int64_t end = c + unit; c < end; ++c) weight[c] += second[n * shape.c + c] * rstd[k];
    std::copy_n(total, shape.c, bias_grad);
    std::copy_n(weight, shape.c, weight_grad);
  }

  const Shape shape;
  const Pool pool;
  const Affine<A> affine;
  const int64_t unit;
  const bool merged;
  Whole<T> whole;
  Job<T> groups;  // the job with every group as one plane
  Whole<T> grouped;
  std::unique_ptr<A[]> coefficients;
  std::unique_ptr<double[]> sums, rstd;
  A *center, *scale, *shift, *slope, *offset;
  double *first, *second, *total, count;  // tables of N x C: means and deviations, or sums and products; pools of them
};

}  // namespace normwise
