// Blends of two standardizations of every plane, by its own moments and by those of the instances of its pool.
#pragma once
#include <cmath>

#include "parallel.h"

namespace normwise {

// One number for each channel, or for each plane (then row is the number of channels); without data all are 0.
template <class A> struct Weights {
  const A* data;
  int64_t row;
  double at(int64_t n, int64_t c) const { return data ? double(data[n * row + c]) : 0; }
};

// y = own * (x - m) / s + pooled * a * (r * (x - M) / S + d) + bias, s = sqrt(variance + eps). A weight of 0 leaves its
// part out, so that NaN stays in the other. Without remembered statistics (one pool, C values) r is 1 and d is 0; else
// they are batch renormalization's, constants to the gradient. a = sigmoid(gain * m + lift) (C values each), or 1.
template <class A> struct Mixture {
  Weights<A> own, pooled, bias;
  const int64_t* pool;  // of each instance; null: all are in pool 0
  int64_t pools;
  double eps;
  const A *known_mean, *known_var;
  double r_max, d_max;
  const A *gain, *lift;
};

// Gradients of the weights, laid out like them; null where there is no such weight.
template <class A> struct WeightGrads { A *own, *pooled, *bias, *gain, *lift; };

template <class T> class Blend {
  using A = Acc<T>;

 public:
  Blend(Job<T>& job, const Shape& shape, const Mixture<A>& by)
      : job(job), shape(shape), by(by), regions{by.pooled.data != nullptr, shape.c}, whole(job, shape),
        size(shape.n * shape.c), coefficients(numbers<A>(5 * ((size + 15) / 16 * 16))),
        sums(numbers<double>(5 * size + (7 * shape.c + 1) * by.pools)) {
    const int64_t step = (size + 15) / 16 * 16;
    A* table = coefficients.get();
    center = table, scale = table + step, shift = table + 2 * step, slope = table + 3 * step, offset = table + 4 * step;
    job.table = {center, scale, shift, slope, offset, shape.c};
    mean = sums.get(), var = mean + size, first = var + size, second = first + size, attention = second + size;
    const int64_t pooled = by.pools * shape.c;
    pool_mean = attention + size, pool_var = pool_mean + pooled, pool_rstd = pool_var + pooled;
    ratio = pool_rstd + pooled, distance = ratio + pooled;
    pool_sum = distance + pooled, pool_product = pool_sum + pooled, share = pool_product + pooled;
    std::fill_n(share, by.pools, 0.0);
    for (int64_t n = 0; n < shape.n; ++n) share[pool(n)] += 1;
    for (int64_t k = 0; k < by.pools; ++k) share[k] = share[k] ? 1 / share[k] : 0;
  }

  // Writes the moments it finds, N x C of each, and where there is a pooled part pools x C of each pool's.
  void forward(A* means, A* vars, A* pool_means, A* pool_vars) {
    by_regions(job, whole, regions, 2, [&](const Region& r) {
      whole.moments(r, mean, var);
      each(r, [&](int64_t, int64_t, int64_t at) {
        var[at] /= double(shape.s);
        means[at] = A(mean[at]), vars[at] = A(var[at]);
      });
      set_scale(r);
      if (regions.batch)
        each_pool(r, [&](int64_t, int64_t i) { pool_means[i] = A(pool_mean[i]), pool_vars[i] = A(pool_var[i]); });
      whole.scale_shift(r);
    });
  }

  void backward(const A* means, const A* vars, bool input, const WeightGrads<A>& grads) {
    std::copy_n(means, size, mean), std::copy_n(vars, size, var);
    by_regions(job, whole, regions, 3, [&](const Region& r) {
      set_scale(r);
      whole.reduce_grad(r, first, second);
      if (!input) return;
      set_slope(r);
      whole.apply_grad(r);
    });
    set_grads(grads);
  }

 private:
  Region everything() const { return {0, shape.n, 0, shape.c}; }
  int64_t pool(int64_t n) const { return by.pool ? by.pool[n] : 0; }
  double rstd(int64_t at) const { return 1 / std::sqrt(var[at] + by.eps); }

  // A plane's pooled weight, attention included.
  double turned(int64_t n, int64_t at) const {
    const double weight = by.pooled.at(n, at - n * shape.c);
    return weight == 0 ? 0 : weight * attention[at];
  }

  // What its gradient adds up to.
  double pooled_product(int64_t k, int64_t at) const {
    const double product = second[at] + (mean[at] - pool_mean[k]) * first[at];
    return product * pool_rstd[k] * ratio[k] + first[at] * distance[k];
  }

  // The same of the attention's argument.
  double attention_product(int64_t k, int64_t at) const {
    const double weight = by.pooled.at(at / shape.c, at % shape.c);
    return weight == 0 ? 0 : weight * pooled_product(k, at) * attention[at] * (1 - attention[at]);
  }

  // f(instance, place in a table of pools, place in a table of planes)
  template <class F> void each(const Region& r, F f) const {
    for (int64_t n = r.n0; n < r.n1; ++n)
      for (int64_t c = r.c0, k = pool(n) * shape.c + c, at = n * shape.c + c; c < r.c1; ++c, ++k, ++at) f(n, k, at);
  }

  // f(channel, place in a table of pools)
  template <class F> void each_pool(const Region& r, F f) const {
    for (int64_t k = 0; k < by.pools; ++k)
      for (int64_t c = r.c0; c < r.c1; ++c) f(c, k * shape.c + c);
  }

  // By the law of total variance: the mean of the variances, and what the means deviate from theirs.
  void set_pools(const Region& r) {
    each_pool(r, [&](int64_t, int64_t i) { pool_mean[i] = pool_var[i] = 0, ratio[i] = 1, distance[i] = 0; });
    each(r, [&](int64_t n, int64_t k, int64_t at) { pool_mean[k] += mean[at] * share[pool(n)]; });
    each(r, [&](int64_t n, int64_t k, int64_t at) {
      const double delta = mean[at] - pool_mean[k];
      pool_var[k] += (var[at] + delta * delta) * share[pool(n)];
    });
    each_pool(r, [&](int64_t c, int64_t i) {
      const double std = std::sqrt(pool_var[i] + by.eps);
      pool_rstd[i] = 1 / std;
      if (!by.known_mean) return;
      const double known = std::sqrt(double(by.known_var[c]) + by.eps);
      ratio[i] = clamp(std / known, 1 / by.r_max, by.r_max);
      distance[i] = clamp((pool_mean[i] - double(by.known_mean[c])) / known, -by.d_max, by.d_max);
    });
  }

  static double clamp(double value, double low, double high) {
    return value < low ? low : value > high ? high : value;  // NaN stays
  }

  void set_scale(const Region& r) {
    if (regions.batch) set_pools(r);
    each(r, [&](int64_t n, int64_t k, int64_t at) {
      const int64_t c = at - n * shape.c;
      attention[at] = by.gain ? 1 / (1 + std::exp(-double(by.gain[c]) * mean[at] - double(by.lift[c]))) : 1;
      const double own = by.own.at(n, c), pooled = turned(n, at);
      double factor = 0, level = by.bias.at(n, c);
      if (own != 0) factor += own * rstd(at);
      if (pooled != 0) {
        const double part = pooled * pool_rstd[k] * ratio[k];
        factor += part, level += part * (mean[at] - pool_mean[k]) + pooled * distance[k];
      }
      center[at] = A(mean[at]), scale[at] = A(factor);
      const double lost = center[at] - mean[at];  // what rounding took from the mean
      shift[at] = A(level + (lost == lost ? lost * factor : 0));
    });
  }

  void set_slope(const Region& r) {
    if (regions.batch) {
      each_pool(r, [&](int64_t, int64_t i) { pool_sum[i] = pool_product[i] = 0; });
      each(r, [&](int64_t n, int64_t k, int64_t at) {
        const double pooled = turned(n, at);
        if (pooled == 0) return;
        pool_sum[k] += pooled * first[at];
        pool_product[k] += pooled * (second[at] + (mean[at] - pool_mean[k]) * first[at]);
      });
    }
    const double each_value = 1 / double(shape.s);
    each(r, [&](int64_t n, int64_t k, int64_t at) {
      const double own = by.own.at(n, at - n * shape.c);
      double steep = 0, level = 0;
      if (own != 0) {
        const double factor = rstd(at), part = own * factor * each_value;
        steep -= part * factor * factor * second[at], level -= part * first[at];
      }
      if (regions.batch && (pool_sum[k] != 0 || pool_product[k] != 0)) {
        const double factor = pool_rstd[k], part = factor * ratio[k] * share[pool(n)] * each_value;
        const double pool_steep = -part * factor * factor * pool_product[k];
        steep += pool_steep, level += pool_steep * (mean[at] - pool_mean[k]) - part * pool_sum[k];
      }
      if (by.gain) level += double(by.gain[at - n * shape.c]) * attention_product(k, at) * each_value;
      slope[at] = A(steep), offset[at] = A(level);
    });
  }

  void set_grads(const WeightGrads<A>& grads) const {
    add(by.own, grads.own, [&](int64_t, int64_t at) { return second[at] * rstd(at); });
    add(by.bias, grads.bias, [&](int64_t, int64_t at) { return first[at]; });
    add(by.pooled, grads.pooled, [&](int64_t k, int64_t at) { return attention[at] * pooled_product(k, at); });
    const Weights<A> shared{nullptr, 0};
    add(shared, grads.gain, [&](int64_t k, int64_t at) { return mean[at] * attention_product(k, at); });
    add(shared, grads.lift, [&](int64_t k, int64_t at) { return attention_product(k, at); });
  }

  // The gradient of one kind of weight, summed over instances where they share it.
  template <class F> void add(const Weights<A>& weights, A* grad, F f) const {
    if (!grad) return;
    const auto total = numbers<double>(shape.c);
    std::fill_n(total.get(), shape.c, 0.0);
    each(everything(), [&](int64_t n, int64_t k, int64_t at) {
      if (weights.row) grad[at] = A(f(k, at));
      else total[at - n * shape.c] += f(k, at);
    });
    if (!weights.row) std::copy_n(total.get(), shape.c, grad);
  }

  Job<T>& job;
  const Shape shape;
  const Mixture<A> by;
  const Pool regions;
  Whole<T> whole;
  const int64_t size;
  Numbers<A> coefficients;
  Numbers<double> sums;
  A *center, *scale, *shift, *slope, *offset;
  double *mean, *var, *first, *second;  // N x C: moments, and sums of g and of g * (x - mean)
  double* attention;                    // N x C
  double *pool_mean, *pool_var, *pool_rstd, *ratio, *distance, *pool_sum, *pool_product;  // pools x C
  double* share;  // of an instance in its pool
};

}  // namespace normwise
