// What the kernels of a recurrent cell are given: T steps of N sequences with H values of state each.
#pragma once
#include <cstdint>

namespace normwise {

constexpr int64_t kStats = 3;  // of a step of a sequence: 1 / deviation of the sums; mean and 1 / deviation of the cell

// An LSTM with layer norm. `keep` is 1, or 0 where no backward will follow: then each step overwrites the last.
template <class A> struct LstmJob {
  int64_t steps, batch, size, keep;
  const A* inputs;             // T x N x 4H: the part of the gates that comes from the input, bias included
  const A *first_h, *first_c;  // N x H
  const A* weight;             // in panels: H x 4H forward, 4H x H backward
  const A *norm, *norm_c, *bias_c;  // 4H, H, H
  const int64_t* lengths;           // N, or null: all steps count
  double eps;
  A *out, *cell;           // T x N x H: h, and c before its norm
  A *sums, *gates;         // T x N x 4H: W h standardized, and gates behind sigmoid and tanh
  A* stats;                // T x N x kStats
  const A* grad;           // T x N x H: of out
  A *grad_h, *grad_c;      // N x H: in the backward from last to first; grad_c starts with what it is given
  A *grad_inputs, *grad_sums;  // T x N x 4H; grad_sums: of W h
};

struct Part { int64_t n0, n1; };  // sequences

template <class A> struct LstmKernels {
  int64_t panel;  // columns of a packed matrix that lie side by side
  void (*forward)(const LstmJob<A>&, const Part&, A* scratch);  // scratch: see scratch_size
  // adds the gradients of norm, norm_c and bias_c to 6H numbers
  void (*backward)(const LstmJob<A>&, const Part&, A* scratch, double* norm_grads);
};

constexpr int64_t padded(int64_t columns, int64_t panel) { return (columns + panel - 1) / panel * panel; }

// Sums of a step for every sequence; backward: two rows of state each, one row of gradients, the norm's gradients.
constexpr int64_t scratch_size(int64_t sequences, int64_t size, int64_t panel) {
  return sequences * (padded(4 * size, panel) + padded(size, panel)) + padded(8 * size, panel);
}

}  // namespace normwise
