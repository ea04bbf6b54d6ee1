// The four kernels for rows (C channels side by side: channels-last). Included like kernels.h, after it.

// A bundle of rows shares each load of the coefficients.
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

// Columns in blocks of so many vectors that their sums stay in registers: f(c, vectors, lanes).
template <class A, int most, class F> inline void in_blocks(int64_t width, F f) {
  constexpr int64_t w = kWidth<A>;
  int64_t c = 0;
  for (; c + most * w <= width; c += most * w) f(c, std::integral_constant<int, most>{}, Full{});
  if constexpr (most >= 4)
    for (; c + most / 2 * w <= width; c += most / 2 * w) f(c, std::integral_constant<int, most / 2>{}, Full{});
  if constexpr (most > 1)
    for (; c + w <= width; c += w) f(c, std::integral_constant<int, 1>{}, Full{});
  if (c < width) f(c, std::integral_constant<int, 1>{}, int(width - c));
}

// Calls f(place to sum into, row) for every row; places take turns, so that sums do not wait for each other.
template <int places, class F> inline void in_turns(int64_t rows, F f) {
  int64_t s = 0;
  for (; s + places <= rows; s += places)
    for (int i = 0; i < places; ++i) f(i, s + i);
  for (; s < rows; ++s) f(0, s);
}

template <int places, class V> inline V over(const V* sums) {
  if constexpr (places == 1) return sums[0];
  else return over<places / 2>(sums) + over<places / 2>(sums + places / 2);
}

// Dense rows of few channels, seen as rows `times` as long; `rest`: the positions left over.
template <class T> struct Widened {
  using A = Acc<T>;
  static constexpr int64_t kMost = 8 * kWidthFor<T>;

  Widened(const Job<T>& narrow, const Tile& t) : job(narrow), tile(t), rest(t), width(t.c1 - t.c0) {
    const bool all = dense(job.x) && dense(job.g) && dense(job.extra) && dense(job.out) && dense(job.extra_grad);
    if (all && 2 * width <= kMost && t.s1 - t.s0 > 1) widen();
    else tile.s1 = tile.s0;
  }

  Job<T> job;
  Tile tile, rest;
  int64_t width, times = 1;

 private:
  void widen() {
    times = std::min(kMost / width, rest.s1 - rest.s0);
    move(job.x), move(job.g), move(job.extra), move(job.out), move(job.extra_grad);
    auto& [center, scale, shift, slope, offset, row] = job.table;
    const A** given[] = {&center, &scale, &shift, &slope, &offset};
    for (int k = 0; k < 5; ++k) {
      if (!*given[k]) continue;
      const A* first = *given[k] + rest.n * row + rest.c0;
      for (int64_t i = 0; i < times; ++i) std::copy_n(first, width, tables[k] + i * width);
      *given[k] = tables[k];
    }
    if (const A* first = job.floor) {
      for (int64_t i = 0; i < times; ++i) std::copy_n(first + rest.c0, width, tables[5] + i * width);
      job.floor = tables[5];
    }
    row = 0;
    tile = {0, 0, times * width, 0, (rest.s1 - rest.s0) / times};
    rest.s0 += tile.s1 * times;
  }
  template <class P> bool dense(const Grid<P>& grid) const { return !grid.data || grid.by.s == width; }
  template <class P> void move(Grid<P>& grid) const {
    if (grid.data) grid.data = grid.at(rest.n, rest.c0, rest.s0);
    grid.by.s = times * width;
  }

  alignas(64) A tables[6][kMost];
};

template <class T, void (*kernel)(const Job<T>&, const Tile&)> void widened(const Job<T>& job, const Tile& t) {
  const Widened<T> wide(job, t);
  kernel(wide.job, wide.tile);
  kernel(job, wide.rest);
}

// shift = mean of the first rows, where finite; see guess_mean
template <int vectors, class T, class L>
inline void guess_means(const T* x, int64_t step, int64_t rows, L lanes, VecFor<T> (&shift)[vectors]) {
  using A = Acc<T>;
  const A share = A(1) / rows;
  for (int v = 0; v < vectors; ++v) {
    const T* column = x + v * kWidth<A>;
    const Vec<A> first = load(column, lanes);
    Vec<A> sum = {};
    for (int64_t s = 1; s < rows; ++s) sum += load(column + s * step, lanes) - first;
    const Vec<A> guess = first + sum * share;
    shift[v] = guess - guess == 0 ? guess : Vec<A>{};
  }
}

// Merges the moments of `rows` more rows into those of `before` rows.
template <int vectors, class T, class L>
inline void column_moments(const T* x, int64_t step, int64_t rows, int64_t before, L lanes, int64_t columns,
                           double* mean, double* deviations) {
  using A = Acc<T>;
  constexpr int w = kWidth<A>, places = 8 / vectors;
  Vec<A> shift[vectors], sums[vectors][places] = {}, squares[vectors][places] = {};
  guess_means<vectors>(x, step, (rows + 15) / 16, lanes, shift);
  in_turns<places>(rows, [&](int i, int64_t s) {
    for (int v = 0; v < vectors; ++v) {
      const Vec<A> d = load(x + s * step + v * w, lanes) - shift[v];
      sums[v][i] += d;
      squares[v][i] += d * d;
    }
  });
  A k[vectors * w], sum[vectors * w], square[vectors * w];
  for (int v = 0; v < vectors; ++v) {
    store(k + v * w, shift[v]);
    store(sum + v * w, over<places>(sums[v])), store(square + v * w, over<places>(squares[v]));
  }
  merge(columns, k, sum, square, rows, before, mean, deviations);
}

template <class T> void narrow_moments(const Job<T>& job, const Tile& t, double* mean, double* deviations) {
  using A = Acc<T>;
  std::fill_n(mean, t.c1 - t.c0, 0.0), std::fill_n(deviations, t.c1 - t.c0, 0.0);
  in_runs(t.s0, t.s1, kRows, [&](int64_t s, int64_t rows) {
    in_blocks<A, kBlock>(t.c1 - t.c0, [&](int64_t c, auto vectors, auto lanes) {
      const int64_t columns = std::min<int64_t>(vectors * kWidth<A>, t.c1 - t.c0 - c);
      column_moments<vectors>(job.x.at(t.n, t.c0 + c, s), job.x.by.s, rows, s - t.s0, lanes, columns, mean + c,
                              deviations + c);
    });
  });
}

template <class T> void row_moments(const Job<T>& job, const Tile& t, double* mean, double* deviations) {
  const Widened<T> wide(job, t);
  narrow_moments(job, wide.rest, mean, deviations);
  if (wide.times == 1) return;
  double m[wide.kMost], d[wide.kMost];
  narrow_moments(wide.job, wide.tile, m, d);
  double before = double(wide.rest.s1 - wide.rest.s0);
  for (int64_t i = 0; i < wide.times * wide.width; i += wide.width, before += wide.tile.s1)
    for (int64_t c = 0; c < wide.width; ++c) merge(mean[c], deviations[c], before, m[i + c], d[i + c], wide.tile.s1);
}

template <class T, template <class> class F, bool has_extra>
void narrow_scale_shift(const Job<T>& job, const Tile& t) {
  using A = Acc<T>;
  const int64_t i = t.n * job.table.row + t.c0, width = t.c1 - t.c0;
  const A *center = job.table.center + i, *scale = job.table.scale + i, *shift = job.table.shift + i;
  in_bundles<F<A>::kBundle>(t.s0, t.s1, [&](int64_t s, auto size) {
    const Bundle<size, const T> x(job.x, t.n, t.c0, s), extra(job.extra, t.n, t.c0, s);
    const Bundle<size, T> out(job.out, t.n, t.c0, s);
    const Out<T> put(job.stream, out.row[0], job.out.by.s);
    sweep<A>(width, [&](int64_t c, auto lanes) {
      const Vec<A> m = load(center + c, lanes), a = load(scale + c, lanes), b = load(shift + c, lanes);
      const F<A> act = of_row(F<A>(job.act), job.floor, t.c0 + c, lanes);
      for (int r = 0; r < size; ++r) {
        Vec<A> p = (load(x.row[r] + c, lanes) - m) * a + b;
        if constexpr (has_extra) p += load(extra.row[r] + c, lanes);
        put(out.row[r] + c, act(p), lanes);
      }
    });
  });
}

// Adds the sums of some rows; center, scale and shift belong to the first of the columns.
template <int vectors, class T, template <class> class F, bool has_extra, class L>
inline void column_grads(const Job<T>& job, int64_t n, int64_t c, int64_t s0, int64_t rows, L lanes, int64_t columns,
                         double* sums, double* products, double* floored) {
  using A = Acc<T>;
  using G = Gate<A, F, has_extra>;
  constexpr int w = kWidth<A>, places = F<A>::kBundle / vectors;
  constexpr bool is_floor = kIsFloor<F<A>, A>;
  const int64_t i = n * job.table.row + c;
  Vec<A> center[vectors], scale[vectors] = {}, shift[vectors] = {};
  for (int v = 0; v < vectors; ++v) {
    center[v] = load(job.table.center + i + v * w, lanes);
    if constexpr (G::kNeedsSum) scale[v] = load(job.table.scale + i + v * w, lanes);
    if constexpr (G::kNeedsSum) shift[v] = load(job.table.shift + i + v * w, lanes);
  }
  const T *g = job.g.at(n, c, s0), *x = job.x.at(n, c, s0), *extra = has_extra ? job.extra.at(n, c, s0) : nullptr;
  Vec<A> sum_g[vectors][places] = {}, sum_gx[vectors][places] = {}, sum_rest[vectors][places] = {};
  in_turns<places>(rows, [&](int place, int64_t s) {
    for (int v = 0; v < vectors; ++v) {
      const Vec<A> d = load(x + s * job.x.by.s + v * w, lanes) - center[v];
      const Vec<A> e = has_extra ? load(extra + s * job.extra.by.s + v * w, lanes) : Vec<A>{};
      const G gate{of_row(F<A>(job.act), job.floor, c + v * w, lanes)};
      const Vec<A> given = load(g + s * job.g.by.s + v * w, lanes), p = gate(given, d, scale[v], shift[v], e);
      sum_g[v][place] += p;
      sum_gx[v][place] += p * d;
      if constexpr (is_floor) sum_rest[v][place] += given - p;
    }
  });
  A sum[vectors * w], product[vectors * w], rest[vectors * w];
  for (int v = 0; v < vectors; ++v) {
    store(sum + v * w, over<places>(sum_g[v])), store(product + v * w, over<places>(sum_gx[v]));
    if constexpr (is_floor) store(rest + v * w, over<places>(sum_rest[v]));
  }
  for (int64_t k = 0; k < columns; ++k) {
    sums[k] += sum[k], products[k] += product[k];
    if constexpr (is_floor) floored[k] += rest[k];
  }
}

template <class T, template <class> class F, bool has_extra>
void narrow_reduce_grad(const Job<T>& job, const Tile& t, double* sums, double* products, double* floored) {
  using A = Acc<T>;
  in_runs(t.s0, t.s1, kRows, [&](int64_t s, int64_t rows) {
    in_blocks<A, F<A>::kBundle>(t.c1 - t.c0, [&](int64_t c, auto vectors, auto lanes) {
      const int64_t columns = std::min<int64_t>(vectors * kWidth<A>, t.c1 - t.c0 - c);
      column_grads<vectors, T, F, has_extra>(job, t.n, t.c0 + c, s, rows, lanes, columns, sums + c, products + c,
                                            floored ? floored + c : floored);
    });
  });
}

template <class T, template <class> class F, bool has_extra>
void row_reduce_grad(const Job<T>& job, const Tile& t, double* sums, double* products, double* floored) {
  const Widened<T> wide(job, t);
  narrow_reduce_grad<T, F, has_extra>(job, wide.rest, sums, products, floored);
  if (wide.times == 1) return;
  double s[wide.kMost] = {}, p[wide.kMost] = {}, k[wide.kMost] = {};
  narrow_reduce_grad<T, F, has_extra>(wide.job, wide.tile, s, p, k);
  for (int64_t i = 0; i < wide.times * wide.width; i += wide.width) {
    for (int64_t c = 0; c < wide.width; ++c) sums[c] += s[i + c], products[c] += p[i + c];
    if constexpr (kIsFloor<F<Acc<T>>, Acc<T>>)
      for (int64_t c = 0; c < wide.width; ++c) floored[c] += k[i + c];
  }
}

template <class T, template <class> class F, bool has_extra>
void narrow_apply_grad(const Job<T>& job, const Tile& t) {
  using A = Acc<T>;
  using G = Gate<A, F, has_extra>;
  const int64_t i = t.n * job.table.row + t.c0, width = t.c1 - t.c0;
  const A *centers = job.table.center + i, *scales = job.table.scale + i, *shifts = job.table.shift + i;
  const A *slopes = job.table.slope + i, *offsets = job.table.offset + i;
  in_bundles<F<A>::kBundle>(t.s0, t.s1, [&](int64_t s, auto size) {
    const Bundle<size, const T> g(job.g, t.n, t.c0, s), x(job.x, t.n, t.c0, s), extra(job.extra, t.n, t.c0, s);
    const Bundle<size, T> out(job.out, t.n, t.c0, s), extra_grad(job.extra_grad, t.n, t.c0, s);
    const Out<T> put(job.stream, out.row[0], job.out.by.s);
    sweep<A>(width, [&](int64_t c, auto lanes) {
      const Vec<A> center = load(centers + c, lanes), scale = load(scales + c, lanes);
      const Vec<A> shift = G::kNeedsSum ? load(shifts + c, lanes) : Vec<A>{};
      const Vec<A> slope = load(slopes + c, lanes), offset = load(offsets + c, lanes);
      const G gate{of_row(F<A>(job.act), job.floor, t.c0 + c, lanes)};
      for (int r = 0; r < size; ++r) {
        const Vec<A> d = load(x.row[r] + c, lanes) - center;
        const Vec<A> e = has_extra ? load(extra.row[r] + c, lanes) : Vec<A>{};
        const Vec<A> v = gate(load(g.row[r] + c, lanes), d, scale, shift, e);
        if constexpr (has_extra) store(extra_grad.row[r] + c, v, lanes);
        put(out.row[r] + c, v * scale + (d * slope + offset), lanes);
      }
    });
  });
}
