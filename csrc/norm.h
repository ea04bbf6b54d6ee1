// Batch, instance, group and filter response norm in one call each way: moments, pool, coefficients, apply.
#pragma once
#include <cmath>

#include "parallel.h"

namespace normwise {

// What a norm has besides the tensors of its job; null where there is none. Statistics: N x groups or C.
template <class A> struct Affine {
  const A *weight, *bias;
  double eps;
  bool about_zero;  // divides by the root mean square and subtracts nothing: the mean is 0, the variance about it
  double scale(int64_t c) const { return weight ? weight[c] : 1; }
  double shift(int64_t c) const { return bias ? bias[c] : 0; }
};

template <class T> class Norm {
  using A = Acc<T>;

 public:
  Norm(Job<T>& job, const Shape& shape, const Pool& pool, const Affine<A>& affine)
      : job(job), shape(shape), pool(pool), affine(affine), unit(pool.channels(shape)),
        merged(!pool.batch && (unit == 1 || (!shape.rows && job.x.by.c == shape.s))), whole(job, shape),
        groups(job), grouped(groups, merged ? Shape{shape.n, pool.groups, unit * shape.s, shape.rows} : shape),
        size(((pool.batch ? 1 : shape.n) * shape.c + 15) / 16 * 16), coefficients(numbers<A>(5 * size)),
        statistics(pool.batch ? shape.c : shape.n * pool.groups),
        sums(numbers<double>(((job.floor ? 3 : 2) * shape.n + 2) * shape.c + 3 * statistics)) {
    A* table = coefficients.get();
    center = table, scale = table + size, shift = table + 2 * size, slope = table + 3 * size;
    offset = table + 4 * size;
    job.table = {center, scale, shift, slope, offset, pool.batch ? 0 : shape.c};
    if (merged) groups.x.by.c *= unit;  // a group of planes without gaps is one plane
    count = double(shape.s) * double(unit) * double(pool.batch ? shape.n : 1);
    first = sums.get(), second = first + shape.n * shape.c, total = second + shape.n * shape.c;
    rstd = total + 2 * shape.c, center_of = rstd + statistics, deviations_of = center_of + statistics;
    floored = job.floor ? deviations_of + statistics : nullptr;
    if (pool.batch) center_of = total, deviations_of = total + shape.c;
  }

  // Writes the moments it finds.
  void forward(A* mean, A* var) {
    if (merged) center_of = first, deviations_of = second;
    by_regions(job, whole, pool, 2, [&](const Region& r) {
      grouped.moments(merged ? Region{r.n0, r.n1, r.c0 / unit, r.c1 / unit, r.alone} : r, first, second);
      set_forward(r, mean, var);
      whole.scale_shift(r);
    });
  }

  // With moments from elsewhere: running statistics.
  void forward_given(const A* mean, const A* var) {
    set_given(everything(), mean, var);
    whole.scale_shift_once();
  }

  // Gradients of input, weight, bias and floor; `fixed`: the moments did not depend on the input.
  void backward(const A* mean, const A* var, bool fixed, bool input, A* weight_grad, A* bias_grad, A* floor_grad) {
    if (fixed && input && !floored) backward_at_once(mean, var);
    else backward_in_turn(mean, var, fixed, input);
    set_affine_grads(weight_grad, bias_grad);
    if (!floored) return;
    add_rows(everything(), total, [&](int64_t at, int64_t) { return floored[at]; });
    std::copy_n(total, shape.c, floor_grad);
  }

 private:
  Region everything() const { return {0, shape.n, 0, shape.c}; }

  // Where the gradient of the input does not wait for the sums.
  void backward_at_once(const A* mean, const A* var) {
    set_given(everything(), mean, var);
    whole.fixed_grad(first, second);
    if (pool.batch) set_totals(everything());
  }

  void backward_in_turn(const A* mean, const A* var, bool fixed, bool input) {
    by_regions(job, whole, pool, 3, [&](const Region& r) {
      set_given(r, mean, var);
      whole.reduce_grad(r, first, second, floored);
      if (pool.batch) set_totals(r);
      if (!input) return;
      set_backward(r, fixed);
      whole.apply_grad(r);
    });
  }

  // f(first and last statistic, its first channel, the place of that in the coefficients): instance by instance
  template <class F> void each_row(const Region& r, F f) const {
    if (pool.batch) return f(r.c0, r.c1, r.c0, r.c0);
    for (int64_t n = r.n0; n < r.n1; ++n)
      f(n * pool.groups + r.c0 / unit, n * pool.groups + r.c1 / unit, r.c0, n * shape.c + r.c0);
  }

  // Row by row, because that is how the table lies in memory.
  template <class F> void add_rows(const Region& r, double* to, F f) const {
    std::fill(to + r.c0, to + r.c1, 0.0);
    for (int64_t n = r.n0; n < r.n1; ++n)
      for (int64_t c = r.c0; c < r.c1; ++c) to[c] += f(n * shape.c + c, c);
  }

  void set_totals(const Region& r) const {
    add_rows(r, total, [&](int64_t at, int64_t) { return first[at]; });
    add_rows(r, total + shape.c, [&](int64_t at, int64_t) { return second[at]; });
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
    each_row(r, [&](int64_t k, int64_t end, int64_t c, int64_t at) {
      for (int64_t i = k; i < end && !pool.batch && !merged; ++i) {
        const int64_t place = at + (i - k) * unit;
        const Moments all = pooled(first + place, second + place, unit, double(shape.s));
        center_of[i] = all.mean, deviations_of[i] = all.deviations;
      }
      for (int64_t i = k; i < end; ++i) {
        double variance = deviations_of[i] / count;
        if (affine.about_zero) variance += center_of[i] * center_of[i], center_of[i] = 0;
        mean[i] = A(center_of[i]), var[i] = A(variance), rstd[i] = 1 / std::sqrt(variance + affine.eps);
      }
      set_affine(k, end, c, at);
    });
  }

  void set_given(const Region& r, const A* mean, const A* var) {
    each_row(r, [&](int64_t k, int64_t end, int64_t c, int64_t at) {
      for (int64_t i = k; i < end; ++i) center_of[i] = mean[i], rstd[i] = 1 / std::sqrt(double(var[i]) + affine.eps);
      set_affine(k, end, c, at);
    });
  }

  void set_affine(int64_t k, int64_t end, int64_t c0, int64_t at0) {
    each_channel(k, end, [&](int64_t i, int64_t channel) {
      const int64_t c = c0 + channel, at = at0 + channel;
      const double factor = affine.scale(c) * rstd[i], lost = A(center_of[i]) - center_of[i];
      center[at] = A(center_of[i]), scale[at] = A(factor);
      shift[at] = A(affine.shift(c) + (lost == lost ? lost * factor : 0));  // what rounding took from the mean
    });
  }

  // f(statistic, channel counted from the first statistic's)
  template <class F> void each_channel(int64_t k, int64_t end, F f) const {
    if (unit == 1)
      for (int64_t i = k; i < end; ++i) f(i, i - k);
    else
      for (int64_t i = k, c = 0; i < end; ++i)
        for (const int64_t next = c + unit; c < next; ++c) f(i, c);
  }

  void set_backward(const Region& r, bool fixed) {
    const double *s = pool.batch ? total : first, *p = pool.batch ? total + shape.c : second;
    each_row(r, [&](int64_t k, int64_t end, int64_t c0, int64_t at0) {
      if (fixed) std::fill_n(slope + at0, (end - k) * unit, A(0)), std::fill_n(offset + at0, (end - k) * unit, A(0));
      else if (unit == 1)
        for (int64_t i = k, c = c0, at = at0; i < end; ++i, ++c, ++at)
          set_slope(i, at, 1, s[at] * affine.scale(c), p[at] * affine.scale(c));
      else
        for (int64_t i = k, c = c0, at = at0; i < end; ++i, c += unit, at += unit) {
          double sum = 0, product = 0;
          for (int64_t u = 0; u < unit; ++u)
            sum += s[at + u] * affine.scale(c + u), product += p[at + u] * affine.scale(c + u);
          set_slope(i, at, unit, sum, product);
        }
    });
  }

  void set_slope(int64_t k, int64_t at, int64_t channels, double sum, double product) {
    const double share = rstd[k] / count;
    const A steep = A(-product * share * rstd[k] * rstd[k]), level = affine.about_zero ? A(0) : A(-sum * share);
    for (int64_t c = 0; c < channels; ++c) slope[at + c] = steep, offset[at + c] = level;
  }

  void set_affine_grads(A* weight_grad, A* bias_grad) {
    double* weight = total + shape.c;
    if (pool.batch) {
      for (int64_t c = 0; c < shape.c; ++c) weight[c] *= rstd[c];
    } else {
      add_rows(everything(), total, [&](int64_t at, int64_t) { return first[at]; });
      std::fill_n(weight, shape.c, 0.0);
      each_row(everything(), [&](int64_t k, int64_t end, int64_t, int64_t at) {
        each_channel(k, end, [&](int64_t i, int64_t c) { weight[c] += second[at + c] * rstd[i]; });
      });
    }
    std::copy_n(total, shape.c, bias_grad);
    std::copy_n(weight, shape.c, weight_grad);
  }

  Job<T>& job;
  const Shape shape;
  const Pool pool;
  const Affine<A> affine;
  const int64_t unit;
  const bool merged;
  Whole<T> whole;
  Job<T> groups;  // the job with every group as one plane
  Whole<T> grouped;
  const int64_t size;  // of a table of coefficients, in whole cache lines
  Numbers<A> coefficients;
  const int64_t statistics;
  Numbers<double> sums;
  A *center, *scale, *shift, *slope, *offset;
  double count;
  double *first, *second;  // N x C: means and deviations, or sums and products
  double* total;           // 2 x C: these of the whole batch
  double *rstd, *center_of, *deviations_of;  // one of each per statistic
  double* floored;                           // N x C, or null: the part of the gradient that is the floor's
};

}  // namespace normwise
