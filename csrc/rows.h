// The four kernels for rows (C channels side by side: channels-last). Included like kernels.h, after it.

// Four rows share each load of the coefficients and each update of the sums.
template <class F> inline void in_bundles(int64_t begin, int64_t end, F f) {
  int64_t s = begin;
  for (; s + 4 <= end; s += 4) f(s, std::integral_constant<int, 4>{});
  for (; s < end; ++s) f(s, std::integral_constant<int, 1>{});
}

// shift = mean of the first rows, where finite; see guess_mean
template <class T> inline void guess_means(const Grid<const T>& x, int64_t n, int64_t c0, int64_t width,
                                           int64_t s0, int64_t rows, Acc<T>* shift) {
  using A = Acc<T>;
  const A share = A(1) / rows;
  sweep<A>(width, [&](int64_t c, auto lanes) {
    Vec<A> sum = {};
    for (int64_t s = s0; s < s0 + rows; ++s) sum += load(x.at(n, c0 + c, s), lanes);
    sum *= share;
    store(shift + c, sum - sum == 0 ? sum : Vec<A>{}, lanes);
  });
}

template <class T> void row_moments(const Job<T>& job, const Tile& t, double* mean, double* deviations) {
  using A = Acc<T>;
  A shift[kStrip], sums[kStrip], squares[kStrip];
  in_runs(t.c0, t.c1, kStrip, [&](int64_t c0, int64_t width) {
    double *m = mean + (c0 - t.c0), *d = deviations + (c0 - t.c0);
    std::fill_n(m, width, 0.0), std::fill_n(d, width, 0.0);
    in_runs(t.s0, t.s1, kRows, [&](int64_t s0, int64_t rows) {
      // a power of two, so that a constant channel has its value as the mean exactly
      guess_means(job.x, t.n, c0, width, s0, rows >= 64 ? 8 : 1, shift);
      std::fill_n(sums, width, A(0)), std::fill_n(squares, width, A(0));
      in_bundles(s0, s0 + rows, [&](int64_t s, auto bundle) {
        sweep<A>(width, [&](int64_t c, auto lanes) {
          const Vec<A> k = load(shift + c, lanes);
          Vec<A> sum = load(sums + c, lanes), square = load(squares + c, lanes);
          for (int r = 0; r < bundle; ++r) {
            const Vec<A> v = load(job.x.at(t.n, c0 + c, s + r), lanes) - k;
            sum += v;
            square += v * v;
          }
          store(sums + c, sum, lanes), store(squares + c, square, lanes);
        });
      });
      for (int64_t c = 0; c < width; ++c) {
        const double v = double(squares[c]) - double(sums[c]) * sums[c] / rows;
        merge(m[c], d[c], s0 - t.s0, shift[c] + double(sums[c]) / rows, v < 0 ? 0 : v, rows);
      }
    });
  });
}

template <class T, template <class> class F, bool has_extra>
void row_scale_shift(const Job<T>& job, const Tile& t) {
  using A = Acc<T>;
  const F<A> act(job.act);
  const A* center = job.table.center + t.n * job.table.row + t.c0;
  const A* scale = job.table.scale + t.n * job.table.row + t.c0;
  const A* shift = job.table.shift + t.n * job.table.row + t.c0;
  in_bundles(t.s0, t.s1, [&](int64_t s, auto bundle) {
    sweep<A>(t.c1 - t.c0, [&](int64_t c, auto lanes) {
      const Vec<A> m = load(center + c, lanes), a = load(scale + c, lanes), b = load(shift + c, lanes);
      for (int r = 0; r < bundle; ++r) {
        Vec<A> p = (load(job.x.at(t.n, t.c0 + c, s + r), lanes) - m) * a + b;
        if constexpr (has_extra) p += load(job.extra.at(t.n, t.c0 + c, s + r), lanes);
        store(job.out.at(t.n, t.c0 + c, s + r), act(p), lanes);
      }
    });
  });
}

template <class T, template <class> class F, bool has_extra>
void row_reduce_grad(const Job<T>& job, const Tile& t, double* sums, double* products) {
  using A = Acc<T>;
  using G = Gate<A, F, has_extra>;
  const G gate{F<A>(job.act)};
  A sum_g[kStrip], sum_gx[kStrip];
  in_runs(t.c0, t.c1, kStrip, [&](int64_t c0, int64_t width) {
    const int64_t i = t.n * job.table.row + c0;
    in_runs(t.s0, t.s1, kRows, [&](int64_t s0, int64_t rows) {
      std::fill_n(sum_g, width, A(0)), std::fill_n(sum_gx, width, A(0));
      in_bundles(s0, s0 + rows, [&](int64_t s, auto bundle) {
        sweep<A>(width, [&](int64_t c, auto lanes) {
          const Vec<A> center = load(job.table.center + i + c, lanes);
          const Vec<A> scale = G::kNeedsSum ? load(job.table.scale + i + c, lanes) : Vec<A>{};
          const Vec<A> shift = G::kNeedsSum ? load(job.table.shift + i + c, lanes) : Vec<A>{};
          Vec<A> sum = load(sum_g + c, lanes), product = load(sum_gx + c, lanes);
          for (int r = 0; r < bundle; ++r) {
            const Vec<A> d = load(job.x.at(t.n, c0 + c, s + r), lanes) - center;
            const Vec<A> e = has_extra ? load(job.extra.at(t.n, c0 + c, s + r), lanes) : Vec<A>{};
            const Vec<A> v = gate(load(job.g.at(t.n, c0 + c, s + r), lanes), d, scale, shift, e);
            sum += v;
            product += v * d;
          }
          store(sum_g + c, sum, lanes), store(sum_gx + c, product, lanes);
        });
      });
      for (int64_t c = 0; c < width; ++c) {
        sums[c0 - t.c0 + c] += sum_g[c];
        products[c0 - t.c0 + c] += sum_gx[c];
      }
    });
  });
}

template <class T, template <class> class F, bool has_extra>
void row_apply_grad(const Job<T>& job, const Tile& t) {
  using A = Acc<T>;
  using G = Gate<A, F, has_extra>;
  const G gate{F<A>(job.act)};
  const int64_t i = t.n * job.table.row + t.c0;
  in_bundles(t.s0, t.s1, [&](int64_t s, auto bundle) {
    sweep<A>(t.c1 - t.c0, [&](int64_t c, auto lanes) {
      const Vec<A> center = load(job.table.center + i + c, lanes), scale = load(job.table.scale + i + c, lanes);
      const Vec<A> shift = G::kNeedsSum ? load(job.table.shift + i + c, lanes) : Vec<A>{};
      const Vec<A> slope = load(job.table.slope + i + c, lanes);
      const Vec<A> offset = load(job.table.offset + i + c, lanes);
      for (int r = 0; r < bundle; ++r) {
        const Vec<A> d = load(job.x.at(t.n, t.c0 + c, s + r), lanes) - center;
        const Vec<A> e = has_extra ? load(job.extra.at(t.n, t.c0 + c, s + r), lanes) : Vec<A>{};
        const Vec<A> v = gate(load(job.g.at(t.n, t.c0 + c, s + r), lanes), d, scale, shift, e);
        if constexpr (has_extra) store(job.extra_grad.at(t.n, t.c0 + c, s + r), v, lanes);
        store(job.out.at(t.n, t.c0 + c, s + r), v * scale + (d * slope + offset), lanes);
      }
    });
  });
}
