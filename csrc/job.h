// What a kernel is given: tensors as pointers and strides, coefficients, and the tile to work on.
#pragma once
#include <cstdint>

#include "cell.h"

namespace normwise {

struct BFloat16 { uint16_t bits; };
struct Half { uint16_t bits; };

// Sums and coefficients: float32, or float64 for float64 tensors.
template <class T> struct AccumulateIn { using type = float; };
template <> struct AccumulateIn<double> { using type = double; };
template <class T> using Acc = typename AccumulateIn<T>::type;

struct Strides { int64_t n, c, s; };  // in elements; a kernel for planes has s == 1, one for rows c == 1

template <class T> struct Grid {  // N x C x S values somewhere in memory
  T* data = nullptr;
  Strides by{};
  T* at(int64_t n, int64_t c, int64_t s) const { return data + n * by.n + c * by.c + s * by.s; }
};

struct Tile { int64_t n, c0, c1, s0, s1; };  // channels and positions of one instance

// One number per plane: entry (n, c) stands at n * row + c; row 0 shares the numbers between instances.
template <class A> struct Coefficients {
  const A *center, *scale, *shift, *slope, *offset;
  int64_t row;
};

enum class Act : int64_t { none, clip, leaky, silu, gelu, floor };
constexpr int kActs = 6;

struct Activation {  // clip to [low, high]; leaky with slope low; floor: not below what the job says for the channel
  Act kind = Act::none;
  double low = 0, high = 0;
};

// `extra` in the forward: the residual. In the backward: the output for clip and leaky (its sign is the
// mask), the residual for silu and gelu; `extra_grad` is then the residual's gradient.
template <class T> struct Job {
  Grid<const T> x, g, extra;
  Grid<T> out, extra_grad;
  Coefficients<Acc<T>> table{};
  Activation act;
  const Acc<T>* floor = nullptr;  // one per channel
  bool stream = false;  // bypass the cache when storing
  int64_t ahead = 0;    // how far behind a value just read lies the one to fetch early; 0: none
};

// The kernels of one dtype and layout on one target; tables are indexed by activation and "has extra".
template <class T> struct Kernels {
  // mean and sum of squared deviations over the tile's positions, one of each per channel of the tile
  void (*moments)(const Job<T>&, const Tile&, double* mean, double* deviations);
  // out = act((x - center) * scale + shift + extra)
  void (*scale_shift[kActs][2])(const Job<T>&, const Tile&);
  // adds to sums the sum of g' and to products the sum of g' * (x - center); g' is g behind the activation; for
  // floor also, to floored, the sum of g - g'
  void (*reduce_grad[kActs][2])(const Job<T>&, const Tile&, double* sums, double* products, double* floored);
  // the same and out = scale * g', extra_grad = g': the gradient where the moments are fixed
  void (*fixed_grad[kActs][2])(const Job<T>&, const Tile&, double* sums, double* products, double* floored);
  // out = scale * g' + slope * (x - center) + offset; extra_grad = g'
  void (*apply_grad[kActs][2])(const Job<T>&, const Tile&);
};

template <class T> struct Layouts {
  Kernels<T> planes, rows;
  LstmKernels<Acc<T>> lstm;
};

// The set for the processor we run on, chosen once.
template <class T> const Layouts<T>& kernels();

}  // namespace normwise
