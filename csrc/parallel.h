// Shares planes and rows out between PyTorch's threads, so that what is read twice is still in cache.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "job.h"

namespace normwise {

constexpr int64_t kGrain = 32768;      // values below which a second thread does not pay
constexpr int64_t kPast = 8 << 20;        // bytes of output from which it would only drive the input from the cache
constexpr int64_t kNear = 256 << 10;      // bytes of planes normalized one after the other
constexpr int64_t kAhead = 256 << 10;     // bytes of the next planes, fetched while the last are written
constexpr int64_t kFar = 2 << 20;         // the same across instances, where short runs cost more than cache misses

struct Shape { int64_t n, c, s; bool rows; };
// Instances and channels that can be normalized by themselves; by one thread, unless they are all there are.
struct Region { int64_t n0, n1, c0, c1; bool alone = true; };

// Which planes share their moments: those of a group of one instance, or of a channel over all instances.
struct Pool {
  bool batch;
  int64_t groups;
  int64_t channels(const Shape& shape) const { return batch ? 1 : shape.c / groups; }
};

// Numbers that begin with a cache line: a load across two of them takes twice as long.
constexpr std::align_val_t kLine{64};
struct Free { void operator()(void* p) const { ::operator delete[](p, kLine); } };
template <class A> using Numbers = std::unique_ptr<A[], Free>;
template <class A> Numbers<A> numbers(int64_t count) { return Numbers<A>(new (kLine) A[count]); }

// Moments of equally large sets from the moments of each: the law of total variance.
struct Moments { double mean, deviations; };
inline Moments pooled(const double* mean, const double* deviations, int64_t count, double size) {
  Moments all{0, 0};
  for (int64_t i = 0; i < count; ++i) all.mean += mean[i];
  all.mean /= double(count);
  for (int64_t i = 0; i < count; ++i) {
    const double delta = mean[i] - all.mean;
    all.deviations += deviations[i] + delta * delta * size;
  }
  return all;
}

// Says whether so many equal pieces keep all threads busy to the end, or nearly so.
inline bool balanced(int64_t pieces, int64_t threads) {
  return (pieces + threads - 1) / threads * threads * 4 <= pieces * 5;
}

// The four kernels over whole tensors.
template <class T> class Whole {
 public:
  Whole(const Job<T>& job, const Shape& shape)
      : job(job), shape(shape), kernels(shape.rows ? normwise::kernels<T>().rows : normwise::kernels<T>().planes),
        act(int(job.act.kind)), extra(job.extra.data != nullptr) {
    const int64_t threads = torch::stable::get_num_threads();
    const bool even = shape.rows ? shape.n % threads == 0 : balanced(shape.n * shape.c, threads);
    parts = !even && shape.s >= threads && values() > 2 * kGrain ? threads : 1;
    length = (shape.s + parts - 1) / parts;
    if (parts > 1 && !shape.rows) length = (length + 63) / 64 * 64;  // whole cache lines
  }

  int64_t values() const { return shape.n * shape.c * shape.s; }

  void moments(double* mean, double* deviations) const {
    const auto partial = numbers<double>(parts > 1 ? 2 * shape.n * parts * shape.c : 0);
    double* m = parts > 1 ? partial.get() : mean;
    double* d = parts > 1 ? m + shape.n * parts * shape.c : deviations;
    each([&](const Tile& t, int64_t at) { kernels.moments(job, t, m + at, d + at); });
    if (parts > 1) fold_moments(m, d, mean, deviations);
  }

  void scale_shift() const { apply(kernels.scale_shift[act][extra]); }
  void scale_shift_once() const {  // of a tensor no pass before has read
    each([&](const Tile& t, int64_t) {
      kernels.scale_shift[act][extra](job, t);
      order();
    });
  }
  void apply_grad() const { apply(kernels.apply_grad[act][extra]); }

  void reduce_grad(double* sums, double* products, double* floored = nullptr) const {
    reduce(kernels.reduce_grad[act][extra], sums, products, floored);
  }
  void fixed_grad(double* sums, double* products) const {
    reduce(kernels.fixed_grad[act][extra], sums, products, nullptr);
  }

  // The same over one region.
  void moments(const Region& r, double* mean, double* deviations) const {
    if (!r.alone) return moments(mean, deviations);
    for (int64_t n = r.n0; n < r.n1; ++n) {
      const int64_t at = n * shape.c + r.c0;
      kernels.moments(job, {n, r.c0, r.c1, 0, shape.s}, mean + at, deviations + at);
    }
  }

  void reduce_grad(const Region& r, double* sums, double* products, double* floored = nullptr) const {
    if (!r.alone) return reduce_grad(sums, products, floored);
    for (int64_t n = r.n0; n < r.n1; ++n) {
      const int64_t at = n * shape.c + r.c0;
      std::fill_n(sums + at, r.c1 - r.c0, 0.0), std::fill_n(products + at, r.c1 - r.c0, 0.0);
      if (floored) std::fill_n(floored + at, r.c1 - r.c0, 0.0);
      kernels.reduce_grad[act][extra](job, {n, r.c0, r.c1, 0, shape.s}, sums + at, products + at,
                                      floored ? floored + at : nullptr);
    }
  }

  void scale_shift(const Region& r) const { apply(r, kernels.scale_shift[act][extra]); }
  void apply_grad(const Region& r) const { apply(r, kernels.apply_grad[act][extra]); }

  const Job<T>& job;
  const Shape shape;

 private:
  using Apply = void (*)(const Job<T>&, const Tile&);
  using Reduce = void (*)(const Job<T>&, const Tile&, double*, double*, double*);

  void reduce(Reduce kernel, double* sums, double* products, double* floored) const {
    const int64_t size = shape.n * parts * shape.c;
    const auto partial = numbers<double>(parts > 1 ? (floored ? 3 : 2) * size : 0);
    double* s = parts > 1 ? partial.get() : sums;
    double* p = parts > 1 ? s + size : products;
    double* k = parts > 1 && floored ? p + size : floored;
    std::fill_n(s, size, 0.0), std::fill_n(p, size, 0.0), std::fill_n(k, floored ? size : 0, 0.0);
    each([&](const Tile& t, int64_t at) {
      kernel(job, t, s + at, p + at, k ? k + at : k);
      order();
    });
    if (parts > 1) fold_sums(s, sums), fold_sums(p, products);
    if (parts > 1 && floored) fold_sums(k, floored);
  }

  // Each tile once, in parallel, with its place in a table of N * parts rows.
  template <class F> void each(F f) const {
    const int64_t c = shape.c;
    if (shape.rows) {
      const int64_t size = std::max<int64_t>(1, c * length);
      torch::stable::parallel_for(0, shape.n * parts, std::max<int64_t>(1, kGrain / size), [&](int64_t i, int64_t end) {
        for (; i < end; ++i) f(tile(i, 0, c), i * c);
      });
    } else {
      const int64_t count = shape.n * parts * c, grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, length));
      torch::stable::parallel_for(0, count, grain, [&](int64_t i, int64_t end) {
        for (int64_t next; i < end; i = next) {
          next = std::min(end, (i / c + 1) * c);
          f(tile(i / c, i % c, i % c + next - i), i);
        }
      });
    }
  }

  // Row i of the table: one part of an instance's positions.
  Tile tile(int64_t i, int64_t c0, int64_t c1) const {
    const int64_t begin = std::min(shape.s, i % parts * length);
    return {i / parts, c0, c1, begin, std::min(shape.s, begin + length)};
  }

  void apply(Apply kernel) const {
    each([&](const Tile& t, int64_t) { backwards(t, kernel); });
  }

  void apply(const Region& r, Apply kernel) const {
    if (!r.alone) return apply(kernel);
    for (int64_t n = r.n1; n-- > r.n0;) backwards({n, r.c0, r.c1, 0, shape.s}, kernel);
  }

  // Last positions first: they are the ones the pass before has left in cache.
  void backwards(Tile t, Apply kernel) const {
    const int64_t run = shape.rows ? std::max<int64_t>(1, kGrain / shape.c) : std::max<int64_t>(shape.s, 1);
    for (int64_t end = t.s1; end > t.s0; end = t.s0 + (end - t.s0 - 1) / run * run) {
      Tile part = t;
      part.s0 = t.s0 + (end - t.s0 - 1) / run * run;
      part.s1 = end;
      kernel(job, part);
    }
    order();
  }

  void order() const {
    if (job.stream) std::atomic_thread_fence(std::memory_order_seq_cst);  // stores past the cache are not ordered
  }

  void fold_moments(const double* m, const double* d, double* mean, double* deviations) const {
    for (int64_t n = 0; n < shape.n; ++n) {
      for (int64_t c = 0; c < shape.c; ++c) {
        Moments all{0, 0};
        for (int64_t p = 0; p < parts; ++p) {
          const int64_t at = (n * parts + p) * shape.c + c, before = std::min(shape.s, p * length);
          const double count = double(std::min(shape.s, before + length) - before);
          if (count == 0) break;
          const double delta = m[at] - all.mean, share = count / (double(before) + count);
          all.mean += delta * share;
          all.deviations += d[at] + delta * delta * double(before) * share;
        }
        mean[n * shape.c + c] = all.mean;
        deviations[n * shape.c + c] = all.deviations;
      }
    }
  }

  void fold_sums(const double* from, double* to) const {
    for (int64_t n = 0; n < shape.n; ++n) {
      for (int64_t c = 0; c < shape.c; ++c) {
        double sum = 0;
        for (int64_t p = 0; p < parts; ++p) sum += from[(n * parts + p) * shape.c + c];
        to[n * shape.c + c] = sum;
      }
    }
  }

  const Kernels<T>& kernels;
  const int act;
  const bool extra;
  int64_t parts, length;  // an instance's positions are shared out in parts of this length
};

// Calls f(region) in parallel if there are enough regions that fit the cache, else once for all there is.
template <class T, class F>
void by_regions(Job<T>& job, const Whole<T>& whole, const Pool& pool, int64_t streams, F f) {
  const Shape& shape = whole.shape;
  const int64_t instances = pool.batch ? shape.n : 1, unit = pool.channels(shape);
  const int64_t bytes = std::max<int64_t>(1, streams * instances * unit * shape.s * int64_t(sizeof(T)));
  const int64_t width = shape.rows ? shape.c : unit * std::max<int64_t>(1, (pool.batch ? kFar : kNear) / bytes);
  const int64_t across = (shape.c + width - 1) / width, count = shape.n / instances * across;
  if (!balanced(count, torch::stable::get_num_threads()) && whole.values() > 2 * kGrain)
    return f(Region{0, shape.n, 0, shape.c, false});
  const bool fits = !shape.rows && instances * width * shape.s * int64_t(sizeof(T)) <= kAhead;
  job.ahead = fits ? width * shape.s : 0;
  const int64_t values = std::max<int64_t>(1, whole.values() / count);
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrain / values), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t n = i / across, c = i % across * width;
      f(Region{n, n + instances, c, std::min(shape.c, c + width)});
    }
  });
}

}  // namespace normwise
