// The four kernels for rows (C channels side by side: channels-last). Included like kernels.h, after it.

// One row after the other, because that is how they are fetched from memory; only of rows so wide that their
// coefficients do not stay in the nearest cache does a bundle share each load of them.
template <int size, class F> [[gnu::always_inline]] inline void in_bundles(const Tile& t, F f) {
  int64_t s = t.s0;
  if constexpr (size > 1)
    for (; t.c1 - t.c0 > kWide && s + size <= t.s1; s += size) f(s, std::integral_constant<int, size>{});
  for (; s < t.s1; ++s) f(s, std::integral_constant<int, 1>{});
}

// The rows of a tile; a bundle of them is worked out before the loop over channels.
template <class T> struct Rows {
  T* first;
  int64_t step;
  Rows(const Grid<T>& grid, const Tile& t) : first(grid.at(t.n, t.c0, 0)), step(grid.by.s) {}
  T* at(int64_t s) const { return first + s * step; }
  template <int size> std::array<T*, size> from(int64_t s, std::integral_constant<int, size>) const {
    std::array<T*, size> rows;
    for (int r = 0; r < size; ++r) rows[r] = at(s + r);
    return rows;
  }
};

// f(std::integral_constant<int, n>) for n in 1..most
template <int most, class F> inline void with_constant(int64_t n, F f) {
  if constexpr (most > 1)
    if (n < most) return with_constant<most - 1>(n, f);
  f(std::integral_constant<int, most>{});
}

// Columns in about equal blocks of so many vectors that their sums stay in registers: f(c, vectors, lanes).
template <class A, int most, class F> inline void in_blocks(int64_t width, F f) {
  constexpr int64_t w = kWidth<A>;
  const int64_t all = width / w, blocks = (all + most - 1) / most;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = all * i / blocks, next = all * (i + 1) / blocks;
    with_constant<most>(next - first, [&](auto vectors) { f(first * w, vectors, Full{}); });
  }
  if (all * w < width) f(all * w, std::integral_constant<int, 1>{}, int(width - all * w));
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

// shift = mean of the first rows, where finite; see guess_means of planes
template <int vectors, class T, class L>
inline void guess_means(const T* x, int64_t step, int64_t rows, L lanes, VecFor<T> (&shift)[vectors]) {
  using A = Acc<T>;
  const A share = A(1) / rows;
  for (int v = 0; v < vectors; ++v) {
    const T* column = x + v * kWidth<A>;
    const Vec<A> first = load(column, lanes);
    Vec<A> sum = {};
    for (int64_t s = 1; s < rows; ++s) sum += load(column + s * step, lanes) - first;
    const Vec<A> guess = as_stored<T>(first + sum * share);
    shift[v] = guess - guess == 0 ? guess : Vec<A>{};
  }
}

// Merges the moments of `rows` more rows into those of `before` rows.
template <int vectors, class T, class L>
inline void column_moments(const T* x, int64_t step, int64_t rows, int64_t before, L lanes, int64_t columns,
                           double* mean, double* deviations) {
  using A = Acc<T>;
  constexpr int w = kWidth<A>, places = 8 / vectors;
  Vec<A> shift[vectors], sums[vectors] = {}, squares[vectors] = {};
  guess_means<vectors>(x, step, std::min<int64_t>(rows, 16), lanes, shift);
  in_runs(0, rows, kSequence, [&](int64_t begin, int64_t size) {
    Vec<A> sum[vectors][places] = {}, square[vectors][places] = {};
    in_turns<places>(size, [&](int i, int64_t s) {
      const T* row = x + (begin + s) * step;
      for (int v = 0; v < vectors; ++v) {
        approach(row + v * w, v);
        const Vec<A> d = load(row + v * w, lanes) - shift[v];
        sum[v][i] += d;
        square[v][i] += d * d;
      }
    });
    for (int v = 0; v < vectors; ++v) sums[v] += over<places>(sum[v]), squares[v] += over<places>(square[v]);
  });
  A k[vectors * w], sum[vectors * w], square[vectors * w];
  for (int v = 0; v < vectors; ++v)
    store(k + v * w, shift[v]), store(sum + v * w, sums[v]), store(square + v * w, squares[v]);
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
  const Rows<const T> all_x(job.x, t), all_extra(job.extra, t);
  const Rows<T> all_out(job.out, t);
  const Out<T> put(job.stream, all_out.first, all_out.step);
  const bool large = job.stream;
  in_bundles<F<A>::kBundle>(t, [&](int64_t s, auto size) {
    const auto x = all_x.from(s, size), extra = all_extra.from(s, size);
    const auto out = all_out.from(s, size);
    sweep<A>(width, [&](int64_t c, auto lanes) {
      const Vec<A> m = load(center + c, lanes), a = load(scale + c, lanes), b = load(shift + c, lanes);
      const F<A> act = of_row(F<A>(job.act), job.floor, t.c0 + c, lanes);
      for (int r = 0; r < size; ++r) {
        if (large) approach(x[r] + c);
        if (has_extra && large) approach(extra[r] + c);
        Vec<A> p = (load(x[r] + c, lanes) - m) * a + b;
        if constexpr (has_extra) p += load(extra[r] + c, lanes);
        put(out[r] + c, act(p), lanes);
      }
    });
  });
}

// Adds the sums of some rows.
template <int vectors, class T, template <class> class F, bool has_extra, class L>
inline void column_grads(const Job<T>& job, int64_t n, int64_t c, int64_t s0, int64_t rows, L lanes, int64_t columns,
                         double* sums, double* products, double* floored) {
  using A = Acc<T>;
  using G = Gate<A, F, has_extra>;
  constexpr int w = kWidth<A>, places = kColumns<F, A> / vectors;
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
      approach(x + s * job.x.by.s + v * w, v), approach(g + s * job.g.by.s + v * w, v);
      if constexpr (has_extra) approach(extra + s * job.extra.by.s + v * w, v);
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
  in_runs(t.s0, t.s1, kSummed, [&](int64_t s, int64_t rows) {
    in_blocks<A, kColumns<F, A>>(t.c1 - t.c0, [&](int64_t c, auto vectors, auto lanes) {
      const int64_t columns = std::min<int64_t>(vectors * kWidth<A>, t.c1 - t.c0 - c);
      column_grads<vectors, T, F, has_extra>(job, t.n, t.c0 + c, s, rows, lanes, columns, sums + c, products + c,
                                            floored ? floored + c : floored);
    });
  });
}

// What is written is best written in sequence, so here the sums are kept in memory and not the rows cut up.
template <class T, template <class> class F, bool has_extra>
inline void written_grads(const Job<T>& job, const Tile& t, Acc<T>* sums, Acc<T>* products) {
  using A = Acc<T>;
  using G = Gate<A, F, has_extra>;
  const G gate{F<A>(job.act)};
  const int64_t i = t.n * job.table.row + t.c0, width = t.c1 - t.c0;
  const A *centers = job.table.center + i, *scales = job.table.scale + i, *shifts = job.table.shift + i;
  const Rows<const T> all_g(job.g, t), all_x(job.x, t), all_extra(job.extra, t);
  const Rows<T> all_out(job.out, t), all_behind(job.extra_grad, t);
  const Out<T> put(job.stream, all_out.first, all_out.step);
  const Out<T> put_behind(has_extra && job.stream, all_behind.first, all_behind.step);
  for (int64_t s = t.s0; s < t.s1; ++s) {
    const T *g = all_g.at(s), *x = all_x.at(s), *extra = all_extra.at(s);
    T *out = all_out.at(s), *behind = all_behind.at(s);
    sweep<A>(width, [&](int64_t c, auto lanes) {
      approach(x + c), approach(g + c);
      if constexpr (has_extra) approach(extra + c);
      const Vec<A> d = load(x + c, lanes) - load(centers + c, lanes), scale = load(scales + c, lanes);
      const Vec<A> shift = G::kNeedsSum ? load(shifts + c, lanes) : Vec<A>{};
      const Vec<A> v = gate(load(g + c, lanes), d, scale, shift, has_extra ? load(extra + c, lanes) : Vec<A>{});
      store(sums + c, load(sums + c, lanes) + v, lanes);
      store(products + c, load(products + c, lanes) + v * d, lanes);
      if constexpr (has_extra) put_behind(behind + c, v, lanes);
      put(out + c, v * scale, lanes);
    });
  }
}

template <class T, template <class> class F, bool has_extra>
void narrow_fixed_grad(const Job<T>& job, const Tile& t, double* sums, double* products, double*) {
  in_runs(t.c0, t.c1, kWide, [&](int64_t c, int64_t width) {
    in_runs(t.s0, t.s1, kRows, [&](int64_t s, int64_t rows) {
      alignas(64) Acc<T> sum[kWide], product[kWide];
      std::fill_n(sum, width, Acc<T>(0)), std::fill_n(product, width, Acc<T>(0));
      written_grads<T, F, has_extra>(job, {t.n, c, c + width, s, s + rows}, sum, product);
      double *first = sums + (c - t.c0), *second = products + (c - t.c0);
      for (int64_t k = 0; k < width; ++k) first[k] += sum[k], second[k] += product[k];
    });
  });
}

template <class T> using Reduce = void (*)(const Job<T>&, const Tile&, double*, double*, double*);

template <class T, class F, Reduce<T> kernel>
void wide_reduce(const Job<T>& job, const Tile& t, double* sums, double* products, double* floored) {
  const Widened<T> wide(job, t);
  kernel(job, wide.rest, sums, products, floored);
  if (wide.times == 1) return;
  double s[wide.kMost] = {}, p[wide.kMost] = {}, k[wide.kMost] = {};
  kernel(wide.job, wide.tile, s, p, k);
  for (int64_t i = 0; i < wide.times * wide.width; i += wide.width) {
    for (int64_t c = 0; c < wide.width; ++c) sums[c] += s[i + c], products[c] += p[i + c];
    if constexpr (kIsFloor<F, Acc<T>>)
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
  const Rows<const T> all_g(job.g, t), all_x(job.x, t), all_extra(job.extra, t);
  const Rows<T> all_out(job.out, t), all_behind(job.extra_grad, t);
  const Out<T> put(job.stream, all_out.first, all_out.step);
  const Out<T> put_behind(has_extra && job.stream, all_behind.first, all_behind.step);
  const bool large = job.stream;
  in_bundles<F<A>::kBundle>(t, [&](int64_t s, auto size) {
    const auto g = all_g.from(s, size), x = all_x.from(s, size), extra = all_extra.from(s, size);
    const auto out = all_out.from(s, size), behind = all_behind.from(s, size);
    sweep<A>(width, [&](int64_t c, auto lanes) {
      const Vec<A> center = load(centers + c, lanes), scale = load(scales + c, lanes);
      const Vec<A> shift = G::kNeedsSum ? load(shifts + c, lanes) : Vec<A>{};
      const Vec<A> slope = load(slopes + c, lanes), offset = load(offsets + c, lanes);
      const G gate{of_row(F<A>(job.act), job.floor, t.c0 + c, lanes)};
      for (int r = 0; r < size; ++r) {
        if (large) approach(x[r] + c), approach(g[r] + c);
        if (has_extra && large) approach(extra[r] + c);
        const Vec<A> d = load(x[r] + c, lanes) - center;
        const Vec<A> e = has_extra ? load(extra[r] + c, lanes) : Vec<A>{};
        const Vec<A> v = gate(load(g[r] + c, lanes), d, scale, shift, e);
        if constexpr (has_extra) put_behind(behind[r] + c, v, lanes);
        put(out[r] + c, v * scale + (d * slope + offset), lanes);
      }
    });
  });
}
