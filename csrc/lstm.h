// An LSTM with layer norm over all steps, for some of the sequences. Included like kernels.h, after rows.h.

// --- products with a packed matrix ---

template <class A> constexpr int kPanelVectors = kBytes == 64 ? 4 : 2;
template <class A> constexpr int64_t kPanel = kPanelVectors<A> * kWidth<A>;

template <int rows, class A>
inline void multiply(const A* a, int64_t step, const A* panel, int64_t depth, A* out, int64_t out_step) {
  constexpr int vectors = kPanelVectors<A>, w = kWidth<A>;
  Vec<A> sums[rows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k, panel += kPanel<A>) {
    Vec<A> b[vectors];
    for (int v = 0; v < vectors; ++v) b[v] = load(panel + v * w);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) sums[r][v] += a[r * step + k] * b[v];
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) store(out + r * out_step + v * w, sums[r][v]);
}

// out = a * b for dense a; b in panels, the last one filled up with zeros, and so are the rows of out.
template <class A>
inline void multiply(const A* a, int64_t rows, int64_t depth, const A* b, int64_t columns, A* out, int64_t out_step) {
  constexpr int kTile = 4;
  for (int64_t c = 0; c < columns; c += kPanel<A>, b += depth * kPanel<A>) {
    int64_t r = 0;
    A* at = out + c;
    for (; r + kTile <= rows; r += kTile) multiply<kTile>(a + r * depth, depth, b, depth, at + r * out_step, out_step);
    for (; r < rows; ++r) multiply<1>(a + r * depth, depth, b, depth, at + r * out_step, out_step);
  }
}

// --- one step of one sequence ---

template <class A> inline Vec<A> sigmoid(Vec<A> x) { return A(1) / (A(1) + exp(-x)); }

// Near 0 the exponential would lose the digits of x; there x + x^3 p(x^2) / q(x^2), after S. Moshier's Cephes.
template <class A> inline Vec<A> tanh(Vec<A> x) {
  const Vec<A> z = x * x, far = A(2) / (A(1) + exp(A(-2) * x)) - A(1);
  const Vec<A> p = (A(-0.964399179425052238628) * z - A(99.2877231001918586564)) * z - A(1614.68768441708447952);
  const Vec<A> q = ((z + A(112.811678491632931402)) * z + A(2235.48839060100448583)) * z + A(4844.06305325125486048);
  return z < A(0.390625) ? x + x * z * (p / q) : far;
}

template <class A> struct Spread { A mean, rstd; };

template <class A> inline Spread<A> spread(const A* x, int64_t n, double eps) {
  Vec<A> total{}, squares{};
  sweep<A>(n, [&](int64_t i, auto lanes) { total += load(x + i, lanes); });
  const A mean = sum<A>(total) / A(n);
  sweep<A>(n, [&](int64_t i, auto lanes) {
    const Vec<A> d = keep(load(x + i, lanes) - mean, lanes);
    squares += d * d;
  });
  return {mean, A(1) / std::sqrt(sum<A>(squares) / A(n) + A(eps))};
}

// Where the numbers of step t of sequence n stand.
template <class A> struct Place {
  int64_t state, gates, stats;  // kept or overwritten
  int64_t state_now, gates_now;
  Place(const LstmJob<A>& job, int64_t t, int64_t n) {
    const int64_t now = t * job.batch + n, at = job.keep * t * job.batch + n;
    state = at * job.size, gates = 4 * state, stats = at * kStats;
    state_now = now * job.size, gates_now = 4 * state_now;
  }
};

template <class A>
inline void step_forward(const LstmJob<A>& job, int64_t t, int64_t n, const A* sums, const A* before_c) {
  const int64_t size = job.size;
  const Place<A> at(job, t, n);
  const Spread<A> of = spread(sums, 4 * size, job.eps);
  const A* in = job.inputs + at.gates_now;
  A *hat = job.sums + at.gates, *gates = job.gates + at.gates, *cell = job.cell + at.state;
  sweep<A>(size, [&](int64_t i, auto lanes) {
    const auto gate = [&](int64_t k) {
      const int64_t j = k * size + i;
      const Vec<A> x = (load(sums + j, lanes) - of.mean) * of.rstd;
      store(hat + j, x, lanes);
      return load(in + j, lanes) + x * load(job.norm + j, lanes);
    };
    const Vec<A> enter = sigmoid<A>(gate(0)), forget = sigmoid<A>(gate(1)), fresh = tanh<A>(gate(2));
    store(gates + i, enter, lanes), store(gates + size + i, forget, lanes);
    store(gates + 2 * size + i, fresh, lanes), store(gates + 3 * size + i, sigmoid<A>(gate(3)), lanes);
    store(cell + i, forget * load(before_c + i, lanes) + enter * fresh, lanes);
  });
  const Spread<A> of_c = spread(cell, size, job.eps);
  A *out = job.out + at.state_now, *stats = job.stats + at.stats;
  sweep<A>(size, [&](int64_t i, auto lanes) {
    const Vec<A> hat_c = (load(cell + i, lanes) - of_c.mean) * of_c.rstd;
    const Vec<A> shown = hat_c * load(job.norm_c + i, lanes) + load(job.bias_c + i, lanes);
    store(out + i, load(gates + 3 * size + i, lanes) * tanh<A>(shown), lanes);
  });
  stats[0] = of.rstd, stats[1] = of_c.mean, stats[2] = of_c.rstd;
}

// grad_h: of this step's h from later steps; norm_grads: 6H; row: H to write on.
template <class A>
inline void step_backward(const LstmJob<A>& job, int64_t t, int64_t n, const A* grad_h, A* norm_grads, A* row) {
  const int64_t size = job.size;
  const Place<A> at(job, t, n);
  const A *g = job.grad + at.state_now, *gates = job.gates + at.gates, *hat = job.sums + at.gates;
  const A *cell = job.cell + at.state, *stats = job.stats + at.stats;
  const A* before_c = t ? cell - job.batch * size : job.first_c + n * size;
  A *d_gates = job.grad_inputs + at.gates, *d_sums = job.grad_sums + at.gates, *d_cell = job.grad_c + n * size;
  const auto add = [&](A* to, Vec<A> v, auto lanes) { store(to, load(to, lanes) + v, lanes); };
  const A mean = stats[1], rstd = stats[2];
  Vec<A> total{}, product{};
  sweep<A>(size, [&](int64_t i, auto lanes) {
    const Vec<A> dh = load(g + i, lanes) + load(grad_h + i, lanes), o = load(gates + 3 * size + i, lanes);
    const Vec<A> x = (load(cell + i, lanes) - mean) * rstd, w = load(job.norm_c + i, lanes);
    const Vec<A> shown = tanh<A>(x * w + load(job.bias_c + i, lanes)), d = dh * o * (A(1) - shown * shown);
    add(norm_grads + 4 * size + i, d * x, lanes), add(norm_grads + 5 * size + i, d, lanes);
    store(d_gates + 3 * size + i, dh * shown * o * (A(1) - o), lanes);
    store(row + i, d * w, lanes);
    total += d * w, product += d * w * x;
  });
  const A level = sum<A>(total) / A(size), slope = sum<A>(product) / A(size);
  total = product = Vec<A>{};
  sweep<A>(size, [&](int64_t i, auto lanes) {
    const Vec<A> x = (load(cell + i, lanes) - mean) * rstd;
    const Vec<A> dc = load(d_cell + i, lanes) + (load(row + i, lanes) - level - x * slope) * rstd;
    const Vec<A> enter = load(gates + i, lanes), forget = load(gates + size + i, lanes);
    const Vec<A> fresh = load(gates + 2 * size + i, lanes);
    store(d_cell + i, dc * forget, lanes);
    const Vec<A> d[4] = {dc * fresh * enter * (A(1) - enter),
                         dc * load(before_c + i, lanes) * forget * (A(1) - forget),
                         dc * enter * (A(1) - fresh * fresh), load(d_gates + 3 * size + i, lanes)};
    for (int k = 0; k < 4; ++k) {
      const int64_t j = k * size + i;
      const Vec<A> y = load(hat + j, lanes), dy = d[k] * load(job.norm + j, lanes);
      if (k < 3) store(d_gates + j, d[k], lanes);
      add(norm_grads + j, d[k] * y, lanes);
      store(d_sums + j, dy, lanes);
      total += dy, product += dy * y;
    }
  });
  const A flat = sum<A>(total) / A(4 * size), steep = sum<A>(product) / A(4 * size);
  sweep<A>(4 * size, [&](int64_t j, auto lanes) {
    store(d_sums + j, (load(d_sums + j, lanes) - flat - load(hat + j, lanes) * steep) * stats[0], lanes);
  });
}

// --- all steps ---

template <class A> inline bool over(const LstmJob<A>& job, int64_t t, int64_t n) {
  return job.lengths && t >= job.lengths[n];
}

template <class A> void lstm_forward(const LstmJob<A>& job, const Part& part, A* scratch) {
  const int64_t size = job.size, n0 = part.n0, step = padded(4 * size, kPanel<A>);
  for (int64_t t = 0; t < job.steps; ++t) {
    const A* before_h = t ? job.out + (t - 1) * job.batch * size : job.first_h;
    const A* before_c = t ? job.cell + job.keep * (t - 1) * job.batch * size : job.first_c;
    multiply(before_h + n0 * size, part.n1 - n0, size, job.weight, 4 * size, scratch, step);
    for (int64_t n = n0; n < part.n1; ++n) {
      const Place<A> at(job, t, n);
      if (!over(job, t, n)) {
        step_forward(job, t, n, scratch + (n - n0) * step, before_c + n * size);
      } else {
        std::copy_n(before_h + n * size, size, job.out + at.state_now);
        if (t == 0 || job.keep) std::copy_n(before_c + n * size, size, job.cell + at.state);
        if (!job.keep) continue;
        std::fill_n(job.sums + at.gates, 4 * size, A(0)), std::fill_n(job.gates + at.gates, 4 * size, A(0));
        std::fill_n(job.stats + at.stats, kStats, A(0));
      }
    }
  }
}

template <class A> void lstm_backward(const LstmJob<A>& job, const Part& part, A* scratch, double* norm_grads) {
  const int64_t size = job.size, n0 = part.n0, count = part.n1 - n0, step = padded(size, kPanel<A>);
  A *behind = scratch, *held = behind + count * step, *grads = held + count * size, *row = grads + 6 * size;
  std::fill_n(behind, count * step, A(0));
  for (int64_t t = job.steps - 1; t >= 0; --t) {
    std::fill_n(grads, 6 * size, A(0));
    for (int64_t n = n0; n < part.n1; ++n) {
      const Place<A> at(job, t, n);
      if (!over(job, t, n)) {
        step_backward(job, t, n, behind + (n - n0) * step, grads, row);
      } else {
        std::fill_n(job.grad_inputs + at.gates, 4 * size, A(0)), std::fill_n(job.grad_sums + at.gates, 4 * size, A(0));
        for (int64_t i = 0; i < size; ++i)
          held[(n - n0) * size + i] = behind[(n - n0) * step + i] + job.grad[at.state_now + i];
      }
    }
    for (int64_t i = 0; i < 6 * size; ++i) norm_grads[i] += grads[i];
    const int64_t first = (t * job.batch + n0) * 4 * size;
    multiply(job.grad_sums + first, count, 4 * size, job.weight, size, behind, step);
    for (int64_t n = n0; n < part.n1; ++n)
      if (over(job, t, n)) std::copy_n(held + (n - n0) * size, size, behind + (n - n0) * step);
  }
  for (int64_t n = n0; n < part.n1; ++n) std::copy_n(behind + (n - n0) * step, size, job.grad_h + n * size);
}
