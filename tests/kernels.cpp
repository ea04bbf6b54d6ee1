// The kernels without PyTorch, for processors at hand only in an emulator: every dtype, layout and activation
// against plain loops in double. Prints the largest error of each and exits with 1 where one is too large.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../csrc/job.h"

using namespace normwise;

constexpr int64_t N = 2, C = 21, S = 77;  // no multiple of any vector
constexpr double kLow = 0.1;              // of leaky

template <class T> double read(T value) { return value; }
template <> double read(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
template <> double read(Half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const double size = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return value.bits & 0x8000 ? -size : size;
}
template <class T> T random_value(std::mt19937& from) {
  const double v = std::normal_distribution<double>(1, 2)(from);
  if constexpr (sizeof(T) > 2) return T(v);
  else if constexpr (std::is_same_v<T, BFloat16>) {
    const float f = float(v);
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof bits);
    return {uint16_t(bits >> 16)};
  } else {  // between 1 and 2, of either sign
    return {uint16_t((v < 0 ? 0x8000 : 0) | 15 << 10 | (int(std::abs(v) * 256) & 1023))};
  }
}

double value(Act act, double p) {
  if (act == Act::clip) return std::max(p, 0.0);
  if (act == Act::leaky) return p > 0 ? p : kLow * p;
  if (act == Act::silu) return p / (1 + std::exp(-p));
  if (act == Act::gelu) return p * (1 + std::erf(p / std::sqrt(2.0))) / 2;
  return p;
}
double slope_of(Act act, double p) {
  const double step = 1e-5;
  return (value(act, p + step) - value(act, p - step)) / (2 * step);
}

template <class T> struct Check {
  using A = Acc<T>;
  bool is_rows;
  double worst = 0;
  std::vector<T> x, g, out = std::vector<T>(N * C * S);
  std::vector<A> table = std::vector<A>(5 * N * C);
  Job<T> job;

  explicit Check(bool rows) : is_rows(rows) {
    std::mt19937 from(7);
    for (int64_t i = 0; i < N * C * S; ++i) x.push_back(random_value<T>(from)), g.push_back(random_value<T>(from));
    for (A& a : table) a = A(std::normal_distribution<double>(0, 1)(from));
    const Strides by = rows ? Strides{C * S, 1, C} : Strides{C * S, S, 1};
    job.x = {x.data(), by}, job.g = {g.data(), by}, job.out = {out.data(), by};
    const A* t = table.data();
    job.table = {t, t + N * C, t + 2 * N * C, t + 3 * N * C, t + 4 * N * C, C};
  }
  double at(const std::vector<T>& v, int64_t n, int64_t c, int64_t s) const {
    return read(v[is_rows ? (n * S + s) * C + c : (n * C + c) * S + s]);
  }
  void expect(double got, double wanted) {
    const double error = std::abs(got - wanted) / (1 + std::abs(wanted));
    worst = error <= worst ? worst : error;  // a NaN is the worst
  }
  template <class F> void each_output(int64_t n, F wanted) {
    for (int64_t c = 0; c < C; ++c)
      for (int64_t s = 0; s < S; ++s) expect(at(out, n, c, s), wanted(c, s, n * C + c));
  }

  void moments(const Kernels<T>& k, int64_t n) {
    double mean[C] = {}, deviations[C] = {};
    k.moments(job, {n, 0, C, 0, S}, mean, deviations);
    for (int64_t c = 0; c < C; ++c) {
      double m = 0, d = 0;
      for (int64_t s = 0; s < S; ++s) m += at(x, n, c, s) / S;
      for (int64_t s = 0; s < S; ++s) d += std::pow(at(x, n, c, s) - m, 2);
      expect(mean[c], m), expect(deviations[c], d);
    }
  }
  void activation(const Kernels<T>& k, Act act, int64_t n) {
    job.act = {act, act == Act::leaky ? kLow : 0, std::nan("")};
    const A *m = job.table.center, *a = job.table.scale, *b = job.table.shift, *e = job.table.slope, *o = job.table.offset;
    auto before = [&](int64_t c, int64_t s, int64_t i) { return (at(x, n, c, s) - m[i]) * a[i] + b[i]; };
    auto behind = [&](int64_t c, int64_t s, int64_t i) { return at(g, n, c, s) * slope_of(act, before(c, s, i)); };
    k.scale_shift[int(act)][0](job, {n, 0, C, 0, S});
    each_output(n, [&](int64_t c, int64_t s, int64_t i) { return value(act, before(c, s, i)); });
    k.apply_grad[int(act)][0](job, {n, 0, C, 0, S});
    each_output(n, [&](int64_t c, int64_t s, int64_t i) {
      return behind(c, s, i) * a[i] + (at(x, n, c, s) - m[i]) * e[i] + o[i];
    });
    double sums[C] = {}, products[C] = {};
    k.reduce_grad[int(act)][0](job, {n, 0, C, 0, S}, sums, products, nullptr);
    for (int64_t c = 0; c < C; ++c) {
      double sum = 0, product = 0;
      for (int64_t s = 0; s < S; ++s) {
        const double v = behind(c, s, n * C + c);
        sum += v, product += v * (at(x, n, c, s) - m[n * C + c]);
      }
      expect(sums[c], sum), expect(products[c], product);
    }
  }
  void all(const char* name, double most) {
    const Kernels<T>& k = is_rows ? kernels<T>().rows : kernels<T>().planes;
    for (int64_t n = 0; n < N; ++n) {
      moments(k, n);
      for (Act act : {Act::none, Act::clip, Act::leaky, Act::silu, Act::gelu}) activation(k, act, n);
    }
    std::printf("%s %s: %.1e%s\n", name, is_rows ? "rows" : "planes", worst, worst <= most ? "" : ", too large");
    if (!(worst <= most)) std::exit(1);
  }
};

int main() {
  for (bool rows : {false, true}) {
    Check<float>(rows).all("float32", 2e-5);
    Check<double>(rows).all("float64", 1e-7);  // numerical slopes
    Check<BFloat16>(rows).all("bfloat16", 1e-2);
    Check<Half>(rows).all("float16", 2e-3);
  }
}
