// The four kernels, for planes (S values in a row) and for rows (C channels in a row: channels-last).
// Included once per target inside that target's namespace, after vector.h.

// --- activations: value at p, and gradient g behind p ---
// kOutputTells: the gradient can be told from the output; kBundle: rows that share a load of coefficients

template <class A> struct None {
  static constexpr bool kOutputTells = false;
  static constexpr int kBundle = 4;
  explicit None(const Activation&) {}
  Vec<A> operator()(Vec<A> p) const { return p; }
  Vec<A> grad(Vec<A> g, Vec<A>) const { return g; }
};

template <class A> struct Clip {  // high is NaN for ReLU: no comparison with it is ever true
  static constexpr bool kOutputTells = true;
  static constexpr int kBundle = 4;
  Vec<A> low, high;
  explicit Clip(const Activation& a) : low(splat(A(a.low))), high(splat(A(a.high))) {}
  Vec<A> operator()(Vec<A> p) const { return p < low ? low : (p > high ? high : p); }
  Vec<A> grad(Vec<A> g, Vec<A> p) const { return p <= low ? Vec<A>{} : (p >= high ? Vec<A>{} : g); }
};

template <class A> struct Leaky {
  static constexpr bool kOutputTells = true;
  static constexpr int kBundle = 4;
  Vec<A> slope;
  explicit Leaky(const Activation& a) : slope(splat(A(a.low))) {}
  Vec<A> operator()(Vec<A> p) const { return p > 0 ? p : p * slope; }
  Vec<A> grad(Vec<A> g, Vec<A> p) const { return p > 0 ? g : g * slope; }
};

template <class A> struct Silu {
  static constexpr bool kOutputTells = false;
  static constexpr int kBundle = 1;
  explicit Silu(const Activation&) {}
  Vec<A> operator()(Vec<A> p) const { return p / (A(1) + exp(-p)); }
  Vec<A> grad(Vec<A> g, Vec<A> p) const {
    const Vec<A> sigmoid = A(1) / (A(1) + exp(-p));
    return g * sigmoid * (A(1) + p * (A(1) - sigmoid));
  }
};

template <class A> struct Gelu {
  static constexpr bool kOutputTells = false;
  static constexpr int kBundle = 1;
  explicit Gelu(const Activation&) {}
  static Vec<A> below(Vec<A> p) { return A(0.5) * (A(1) + erf(p * A(0.70710678118654752440))); }
  Vec<A> operator()(Vec<A> p) const { return p * below(p); }
  Vec<A> grad(Vec<A> g, Vec<A> p) const {
    return g * (below(p) + p * A(0.39894228040143267794) * exp(A(-0.5) * p * p));
  }
};

// Learned per channel; a NaN on either side comes through. Equal values share the gradient, as in torch.maximum.
template <class A> struct Floor {
  static constexpr bool kOutputTells = false;
  static constexpr int kBundle = 4;
  Vec<A> low{};
  explicit Floor(const Activation&) {}
  Vec<A> operator()(Vec<A> p) const { return (p > low) | (p != p) ? p : low; }
  Vec<A> grad(Vec<A> g, Vec<A> p) const { return p > low ? g : (p == low ? A(0.5) * g : Vec<A>{}); }
};

template <class F, class A> constexpr bool kIsFloor = std::is_same_v<F, Floor<A>>;

// The activation of one channel, or of as many as a vector has lanes.
template <class F, class A> inline F of_plane(F act, const A* floor, int64_t c) {
  if constexpr (kIsFloor<F, A>) act.low = splat(floor[c]);
  return act;
}
template <class F, class A, class L> inline F of_row(F act, const A* floor, int64_t c, L lanes) {
  if constexpr (kIsFloor<F, A>) act.low = load(floor + c, lanes);
  return act;
}

// g behind the activation, from what is at hand: deviation = x - center, and extra if there is one.
template <class A, template <class> class F, bool has_extra> struct Gate {
  F<A> act;
  static constexpr bool kNeedsSum = !std::is_same_v<F<A>, None<A>> && !(has_extra && F<A>::kOutputTells);
  Vec<A> operator()(Vec<A> g, Vec<A> deviation, Vec<A> scale, Vec<A> shift, Vec<A> extra) const {
    if constexpr (has_extra && F<A>::kOutputTells) return act.grad(g, extra);
    return act.grad(g, deviation * scale + shift + extra);
  }
};

// --- helpers ---

constexpr int64_t kRun = 128 * kBytes;  // values of a plane summed in float32 before float64 takes over: 128 in a lane
constexpr int64_t kRows = 256;   // the same for rows
constexpr int64_t kSequence = 16;  // rows summed one after the other; their sums then, so that fewer digits are lost
constexpr int64_t kSummed = 64;  // the same for gradients, whose mean is not taken off first
constexpr int64_t kWide = 1024;  // values of a row whose coefficients stay in the nearest cache
constexpr int kBlock = kBytes == 64 ? 8 : 4;  // vectors of a row whose sums stay in registers
template <template <class> class F, class A>  // the same where an activation takes registers too
constexpr int kColumns = std::is_same_v<F<A>, None<A>> ? kBlock : F<A>::kBundle;

template <class A, class F> inline void sweep(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kWidth<A> <= n; i += kWidth<A>) f(i, Full{});
  if (i < n) f(i, int(n - i));
}

// The same with four independent places to sum into.
template <class A, class F> inline void sweep4(int64_t n, F f) {
  constexpr int64_t w = kWidth<A>;
  int64_t i = 0;
  for (; i + 4 * w <= n; i += 4 * w) {
    f(0, i, Full{}), f(1, i + w, Full{}), f(2, i + 2 * w, Full{}), f(3, i + 3 * w, Full{});
  }
  if (i + w <= n) f(0, i, Full{}), i += w;
  if (i + w <= n) f(1, i, Full{}), i += w;
  if (i + w <= n) f(2, i, Full{}), i += w;
  if (i < n) f(3, i, int(n - i));
}

template <class F> inline void in_runs(int64_t begin, int64_t end, int64_t run, F f) {
  for (int64_t i = begin; i < end; i += run) f(i, std::min(run, end - i));
}

template <class V> inline V total(const V (&parts)[4]) { return (parts[0] + parts[1]) + (parts[2] + parts[3]); }

// Chan, Golub, LeVeque (1979): moments of two sets from the moments of each.
inline void merge(double& mean, double& deviations, double n, double mean2, double deviations2, double n2) {
  const double delta = mean2 - mean, share = n2 / (n + n2);
  mean += delta * share;
  deviations += deviations2 + delta * delta * n * share;
}

// Merges `n` more values of every column, given by sums of what they exceed `shift` by, and of its squares.
template <class A>
inline void merge(int64_t columns, const A* shift, const A* sum, const A* square, int64_t n, int64_t before,
                  double* mean, double* deviations) {
  const double inverse = 1.0 / double(n), share = double(n) / double(before + n), weight = share * double(before);
  for (int64_t c = 0; c < columns; ++c) {
    const double s = sum[c], d = square[c] - s * s * inverse, delta = shift[c] + s * inverse - mean[c];
    mean[c] += delta * share;
    deviations[c] += (d < 0 ? 0 : d) + delta * delta * weight;
  }
}

// --- planes ---

// Shifts near the means of as many planes at a time as a vector has lanes. From m of n values a shift is off by at most
// sqrt(n / m) deviations, whatever the data, so that sums of squares about it lose at most a factor n / m: no second
// pass is needed. Counted from the first value, so that a constant plane gives it exactly.
template <class T> inline VecFor<T> guess_means(const Job<T>& job, int64_t n, int64_t c, int64_t planes, int64_t s,
                                                int64_t length) {
  using A = Acc<T>;
  constexpr int w = kWidth<A>;
  Vec<A> more[w] = {};
  A first[w] = {};
  for (int64_t i = 0; i < planes; ++i) {
    const T* x = job.x.at(n, c + i, s);
    const A begin = first[i] = load(x, 1)[0];
    if (length >= 4 * w) more[i] = ((load(x) + load(x + w)) + (load(x + 2 * w) + load(x + 3 * w)) - 4 * begin) / 4;
    else if (length >= w) more[i] = load(x) - begin;
    else more[i] = keep(load(x, int(length)) - begin, int(length));
  }
  const A share = A(1) / A(std::min<int64_t>(w, length));
  const Vec<A> guess = as_stored<T>(load(first) + lane_by_lane<A>(more) * share);
  return guess - guess == 0 ? guess : Vec<A>{};
}

template <class T> inline void run_moments(const T* x, int64_t n, Acc<T> guess, VecFor<T>& sum, VecFor<T>& square) {
  using A = Acc<T>;
  const Vec<A> shift = splat(guess);
  Vec<A> sums[4] = {}, squares[4] = {};
  sweep4<A>(n, [&](int k, int64_t i, auto lanes) {
    approach(x + i, k);
    const Vec<A> d = keep(load(x + i, lanes) - shift, lanes);
    sums[k] += d;
    squares[k] += d * d;
  });
  sum = total(sums), square = total(squares);
}

// As many planes at a time as a vector has lanes: lane by lane their moments cost one vector's arithmetic.
template <class T> void plane_moments(const Job<T>& job, const Tile& t, double* mean, double* deviations) {
  using A = Acc<T>;
  constexpr int w = kWidth<A>;
  std::fill_n(mean, t.c1 - t.c0, 0.0), std::fill_n(deviations, t.c1 - t.c0, 0.0);
  in_runs(t.c0, t.c1, w, [&](int64_t c, int64_t planes) {
    in_runs(t.s0, t.s1, kRun, [&](int64_t s, int64_t n) {
      Vec<A> sums[w] = {}, squares[w] = {};
      A guess[w], sum[w], square[w];
      store(guess, guess_means(job, t.n, c, planes, s, n));
      for (int64_t i = 0; i < planes; ++i) run_moments(job.x.at(t.n, c + i, s), n, guess[i], sums[i], squares[i]);
      store(sum, lane_by_lane<A>(sums)), store(square, lane_by_lane<A>(squares));
      merge(planes, guess, sum, square, n, s - t.s0, mean + (c - t.c0), deviations + (c - t.c0));
    });
  });
}

template <class T, template <class> class F, bool has_extra>
void plane_scale_shift(const Job<T>& job, const Tile& t) {
  using A = Acc<T>;
  const int64_t ahead = job.ahead;
  const bool large = job.stream;
  for (int64_t c = t.c0; c < t.c1; ++c) {
    const int64_t i = t.n * job.table.row + c;
    const F<A> act = of_plane(F<A>(job.act), job.floor, c);
    const Vec<A> center = splat(job.table.center[i]), scale = splat(job.table.scale[i]);
    const Vec<A> shift = splat(job.table.shift[i]);
    const T* x = job.x.at(t.n, c, t.s0);
    const T* extra = has_extra ? job.extra.at(t.n, c, t.s0) : nullptr;
    T* out = job.out.at(t.n, c, t.s0);
    const Out<T> put(job.stream, out, 0);
    sweep<A>(t.s1 - t.s0, [&](int64_t s, auto lanes) {
      if (ahead) prefetch(x + s + ahead);
      else if (large) approach(x + s);
      Vec<A> p = (load(x + s, lanes) - center) * scale + shift;
      if (has_extra && large) approach(extra + s);
      if constexpr (has_extra) p += load(extra + s, lanes);
      put(out + s, act(p), lanes);
    });
  }
}

// Sums of one run of one plane, c, and with `writes` its gradient; see plane_moments.
template <class T, template <class> class F, bool has_extra, bool writes>
inline void run_grads(const Job<T>& job, int64_t n, int64_t c, int64_t s0, int64_t length, VecFor<T>& sum,
                      VecFor<T>& product, VecFor<T>& rest) {
  using A = Acc<T>;
  const Gate<A, F, has_extra> gate{of_plane(F<A>(job.act), job.floor, c)};
  const int64_t i = n * job.table.row + c;
  const Vec<A> center = splat(job.table.center[i]);
  const Vec<A> scale = splat(gate.kNeedsSum || writes ? job.table.scale[i] : 0);
  const Vec<A> shift = splat(gate.kNeedsSum ? job.table.shift[i] : 0);
  T* out = writes ? job.out.at(n, c, s0) : nullptr;
  T* behind = writes && has_extra ? job.extra_grad.at(n, c, s0) : nullptr;
  const Out<T> put(writes && job.stream, out, 0), put_behind(writes && has_extra && job.stream, behind, 0);
  const T *g = job.g.at(n, c, s0), *x = job.x.at(n, c, s0), *extra = has_extra ? job.extra.at(n, c, s0) : nullptr;
  Vec<A> sum_g[4] = {}, sum_gx[4] = {}, sum_rest[4] = {};
  sweep4<A>(length, [&](int k, int64_t s, auto lanes) {
    approach(x + s, k), approach(g + s, k);
    if constexpr (has_extra) approach(extra + s, k);
    const Vec<A> d = load(x + s, lanes) - center;
    const Vec<A> e = has_extra ? load(extra + s, lanes) : Vec<A>{};
    const Vec<A> given = load(g + s, lanes), v = keep(gate(given, d, scale, shift, e), lanes);
    sum_g[k] += v;
    sum_gx[k] += keep(v * d, lanes);
    if constexpr (kIsFloor<F<A>, A>) sum_rest[k] += keep(given - v, lanes);
    if constexpr (writes && has_extra) put_behind(behind + s, v, lanes);
    if constexpr (writes) put(out + s, v * scale, lanes);
  });
  sum = total(sum_g), product = total(sum_gx), rest = total(sum_rest);
}

template <class T, template <class> class F, bool has_extra, bool writes>
void plane_reduce_grad(const Job<T>& job, const Tile& t, double* sums, double* products, double* floored) {
  using A = Acc<T>;
  constexpr int w = kWidth<A>;
  in_runs(t.c0, t.c1, w, [&](int64_t c, int64_t planes) {
    in_runs(t.s0, t.s1, kRun, [&](int64_t s, int64_t n) {
      Vec<A> sum_g[w] = {}, sum_gx[w] = {}, sum_rest[w] = {};
      A sum[w], product[w], rest[w];
      for (int64_t i = 0; i < planes; ++i)
        run_grads<T, F, has_extra, writes>(job, t.n, c + i, s, n, sum_g[i], sum_gx[i], sum_rest[i]);
      store(sum, lane_by_lane<A>(sum_g)), store(product, lane_by_lane<A>(sum_gx));
      for (int64_t i = 0, at = c - t.c0; i < planes; ++i, ++at) sums[at] += sum[i], products[at] += product[i];
      if constexpr (!kIsFloor<F<A>, A>) return;
      store(rest, lane_by_lane<A>(sum_rest));
      for (int64_t i = 0; i < planes; ++i) floored[c - t.c0 + i] += rest[i];
    });
  });
}

template <class T, template <class> class F, bool has_extra>
void plane_apply_grad(const Job<T>& job, const Tile& t) {
  using A = Acc<T>;
  const int64_t ahead = job.ahead;
  const bool large = job.stream;
  for (int64_t c = t.c0; c < t.c1; ++c) {
    const int64_t i = t.n * job.table.row + c;
    const Gate<A, F, has_extra> gate{of_plane(F<A>(job.act), job.floor, c)};
    const Vec<A> center = splat(job.table.center[i]), scale = splat(job.table.scale[i]);
    const Vec<A> shift = splat(gate.kNeedsSum ? job.table.shift[i] : 0);
    const Vec<A> slope = splat(job.table.slope[i]), offset = splat(job.table.offset[i]);
    const T *g = job.g.at(t.n, c, t.s0), *x = job.x.at(t.n, c, t.s0);
    const T* extra = has_extra ? job.extra.at(t.n, c, t.s0) : nullptr;
    T* extra_grad = has_extra ? job.extra_grad.at(t.n, c, t.s0) : nullptr;
    T* out = job.out.at(t.n, c, t.s0);
    const Out<T> put(job.stream, out, 0), put_extra(has_extra && job.stream, extra_grad, 0);
    sweep<A>(t.s1 - t.s0, [&](int64_t s, auto lanes) {
      if (ahead) prefetch(x + s + ahead), prefetch(g + s + ahead);
      else if (large) approach(x + s), approach(g + s);
      if (has_extra && large) approach(extra + s);
      const Vec<A> d = load(x + s, lanes) - center;
      const Vec<A> e = has_extra ? load(extra + s, lanes) : Vec<A>{};
      const Vec<A> v = gate(load(g + s, lanes), d, scale, shift, e);
      if constexpr (has_extra) put_extra(extra_grad + s, v, lanes);
      put(out + s, v * scale + (d * slope + offset), lanes);
    });
  }
}
