// The four kernels for rows (C channels side by side: channels-last). Included like kernels.h, after it.

// A bundle of rows shares each load of the coefficients and each update of the sums.
template <int size, class F> inline void in_bundles(int64_t begin, int64_t end, F f) {
  int64_t s = begin;
  if constexpr (size > 1)
    for (; s + size <= end; s += size) f(s, std::integral_constant<int, size>{});
  for (; s < end; ++s) f(s, std::integral_constant<int, 1>{});
}

// Pointers to the rows of a bundle, worked out before the loop over channels.
template <int size, class T> struct Bundle {
  T* row[size];
  Bundle(const Grid<T>& grid, int64_t n, int64_t c, int64_t s) {
    for (int r = 0; r < size; ++r) row[r] = grid.at(n, c, s + r);
  }
};

// shift = mean of the first rows, where finite; see guess_mean
template <class T> inline void guess_means(const Grid<const T>& x, int64_t n, int64_t c0, int64_t width,
                                           int64_t s0, int64_t rows, Acc<T>* shift) {
  using A = Acc<T>;
  const A share = A(1) / rows;
  const int64_t step = x.by.s;
  const T* start = x.at(n, c0, s0);
  sweep<A>(width, [&](int64_t c, auto lanes) {
    const Vec<A> first = load(start + c, lanes);
    Vec<A> sum = {};
    for (int64_t s = 1; s < rows; ++s) sum += load(start + s * step + c, lanes) - first;
    const Vec<A> guess = first + sum * share;
    store(shift + c, guess - guess == 0 ? guess : Vec<A>{}, lanes);
  });
}

template <class T> void row_moments(const Job<T>& job, const Tile& t, double* mean, double* deviations) {
  using A = Acc<T>;
  alignas(64) A shift[kStrip], sums[kStrip], squares[kStrip];
  in_runs(t.c0, t.c1, kStrip, [&](int64_t c0, int64_t width) {
    double *m = mean + (c0 - t.c0), *d = deviations + (c0 - t.c0);
    std::fill_n(m, width, 0.0), std::fill_n(d, width, 0.0);
    in_runs(t.s0, t.s1, kRows, [&](int64_t s0, int64_t rows) {
      guess_means(job.x, t.n, c0, width, s0, std::min<int64_t>(rows, 16), shift);
      std::fill_n(sums, width, A(0)), std::fill_n(squares, width, A(0));
      in_bundles<8>(s0, s0 + rows, [&](int64_t s, auto size) {
        const Bundle<size, const T> x(job.x, t.n, c0, s);
        sweep<A>(width, [&](int64_t c, auto lanes) {
          const Vec<A> k = load(shift + c, lanes);
          Vec<A> sum = load(sums + c, lanes), square = load(squares + c, lanes);
          for (int r = 0; r < size; ++r) {
            const Vec<A> v = load(x.row[r] + c, lanes) - k;
            sum += v;
            square += v * v;
          }
          store(sums + c, sum, lanes), store(squares + c, square, lanes);
        });
      });
      const double inverse = 1.0 / rows;
      for (int64_t c = 0; c < width; ++c) {
        const double v = double(squares[c]) - double(sums[c]) * sums[c] * inverse;
        merge(m[c], d[c], s0 - t.s0, shift[c] + double(sums[c]) * inverse, v < 0 ? 0 : v, rows);
      }
    });
  });
}

template <class T, template <class> class F, bool has_extra>
void row_scale_shift(const Job<T>& job, const Tile& t) {
  using A = Acc<T>;
  const F<A> act(job.act);
  const int64_t i = t.n * job.table.row + t.c0, width = t.c1 - t.c0;
  const A *center = job.table.center + i, *scale = job.table.scale + i, *shift = job.table.shift + i;
  in_bundles<F<A>::kBundle>(t.s0, t.s1, [&](int64_t s, auto size) {
    const Bundle<size, const T> x(job.x, t.n, t.c0, s), extra(job.extra, t.n, t.c0, s);
    const Bundle<size, T> out(job.out, t.n, t.c0, s);
    sweep<A>(width, [&](int64_t c, auto lanes) {
      const Vec<A> m = load(center + c, lanes), a = load(scale + c, lanes), b = load(shift + c, lanes);
      for (int r = 0; r < size; ++r) {
        Vec<A> p = (load(x.row[r] + c, lanes) - m) * a + b;
        if constexpr (has_extra) p += load(extra.row[r] + c, lanes);
        store(out.row[r] + c, act(p), lanes);
      }
    });
  });
}

template <class T, template <class> class F, bool has_extra>
void row_reduce_grad(const Job<T>& job, const Tile& t, double* sums, double* products) {
  using A = Acc<T>;
  using G = Gate<A, F, has_extra>;
  const G gate{F<A>(job.act)};
  alignas(64) A sum_g[kStrip], sum_gx[kStrip];
  in_runs(t.c0, t.c1, kStrip, [&](int64_t c0, int64_t width) {
    const int64_t i = t.n * job.table.row + c0;
    const A *centers = job.table.center + i, *scales = job.table.scale + i, *shifts = job.table.shift + i;
    in_runs(t.s0, t.s1, kRows, [&](int64_t s0, int64_t rows) {
      std::fill_n(sum_g, width, A(0)), std::fill_n(sum_gx, width, A(0));
      in_bundles<F<A>::kBundle>(s0, s0 + rows, [&](int64_t s, auto size) {
        const Bundle<size, const T> g(job.g, t.n, c0, s), x(job.x, t.n, c0, s), extra(job.extra, t.n, c0, s);
        sweep<A>(width, [&](int64_t c, auto lanes) {
          const Vec<A> center = load(centers + c, lanes);
          const Vec<A> scale = G::kNeedsSum ? load(scales + c, lanes) : Vec<A>{};
          const Vec<A> shift = G::kNeedsSum ? load(shifts + c, lanes) : Vec<A>{};
          Vec<A> sum = load(sum_g + c, lanes), product = load(sum_gx + c, lanes);
          for (int r = 0; r < size; ++r) {
            const Vec<A> d = load(x.row[r] + c, lanes) - center;
            const Vec<A> e = has_extra ? load(extra.row[r] + c, lanes) : Vec<A>{};
            const Vec<A> v = gate(load(g.row[r] + c, lanes), d, scale, shift, e);
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
  const int64_t i = t.n * job.table.row + t.c0, width = t.c1 - t.c0;
  const A *centers = job.table.center + i, *scales = job.table.scale + i, *shifts = job.table.shift + i;
  const A *slopes = job.table.slope + i, *offsets = job.table.offset + i;
  in_bundles<F<A>::kBundle>(t.s0, t.s1, [&](int64_t s, auto size) {
    const Bundle<size, const T> g(job.g, t.n, t.c0, s), x(job.x, t.n, t.c0, s), extra(job.extra, t.n, t.c0, s);
    const Bundle<size, T> out(job.out, t.n, t.c0, s), extra_grad(job.extra_grad, t.n, t.c0, s);
    sweep<A>(width, [&](int64_t c, auto lanes) {
      const Vec<A> center = load(centers + c, lanes), scale = load(scales + c, lanes);
      const Vec<A> shift = G::kNeedsSum ? load(shifts + c, lanes) : Vec<A>{};
      const Vec<A> slope = load(slopes + c, lanes), offset = load(offsets + c, lanes);
      for (int r = 0; r < size; ++r) {
        const Vec<A> d = load(x.row[r] + c, lanes) - center;
        const Vec<A> e = has_extra ? load(extra.row[r] + c, lanes) : Vec<A>{};
        const Vec<A> v = gate(load(g.row[r] + c, lanes), d, scale, shift, e);
        if constexpr (has_extra) store(extra_grad.row[r] + c, v, lanes);
        store(out.row[r] + c, v * scale + (d * slope + offset), lanes);
      }
    });
  });
}
