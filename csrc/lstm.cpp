// Binding of the LSTM with layer norm: check, share the sequences out between PyTorch's threads, register.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "tensors.h"

namespace normwise {
namespace {

using Optional = std::optional<Tensor>;

struct Steps { int64_t steps, batch, size; };

void check(const Tensor& t, const Tensor& like, const Sizes& sizes, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == like.scalar_type() && t.is_contiguous(), "normwise: ", name,
                  " must be dense, on the CPU and of the dtype of the inputs");
  STD_TORCH_CHECK(t.dim() == int64_t(sizes.size()) && std::equal(sizes.begin(), sizes.end(), t.sizes().begin()),
                  "normwise: ", name, " has the wrong shape for ", like.size(1), " sequences of ", like.size(0),
                  " steps with ", like.size(2), " gates");
}

Steps check(const Tensor& inputs, const Tensor& h, const Tensor& c, const Tensor& weight, const Tensor& norm,
            const Tensor& norm_c, const Tensor& bias_c, const Optional& lengths) {
  STD_TORCH_CHECK(inputs.dim() == 3 && inputs.size(2) % 4 == 0, "normwise: the inputs must be (T, N, 4H)");
  const Steps of{inputs.size(0), inputs.size(1), inputs.size(2) / 4};
  check(inputs, inputs, {of.steps, of.batch, 4 * of.size}, "inputs");
  check(h, inputs, {of.batch, of.size}, "h"), check(c, inputs, {of.batch, of.size}, "c");
  check(weight, inputs, {4 * of.size, of.size}, "weight"), check(norm, inputs, {4 * of.size}, "norm");
  check(norm_c, inputs, {of.size}, "norm_c"), check(bias_c, inputs, {of.size}, "bias_c");
  if (lengths) STD_TORCH_CHECK(lengths->is_cpu() && lengths->scalar_type() == ScalarType::Long &&
                               lengths->is_contiguous() && lengths->numel() == of.batch,
                               "normwise: lengths must be ", of.batch, " numbers of int64 on the CPU");
  return of;
}

template <class F> auto dispatch(ScalarType dtype, F f) {
  if (dtype == ScalarType::Float) return f(float());
  STD_TORCH_CHECK(dtype == ScalarType::Double, "normwise: the dtype must be float32 or float64");
  return f(double());
}

template <class A> A* pointer(const Tensor& t) { return static_cast<A*>(t.data_ptr()); }

// A depth x columns matrix as the products read it: panels of columns, the last one filled up with zeros.
template <class A> Tensor packed(const Tensor& weight, bool transposed, int64_t panel) {
  const int64_t depth = weight.size(transposed), columns = weight.size(!transposed);
  const int64_t row = transposed ? 1 : columns, column = transposed ? depth : 1;
  Tensor fresh = table_like(weight, {padded(columns, panel) * depth}, weight.scalar_type());
  const A* from = pointer<A>(weight);
  A* to = pointer<A>(fresh);
  for (int64_t c0 = 0; c0 < columns; c0 += panel)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t c = c0; c < c0 + panel; ++c) *to++ = c < columns ? from[k * row + c * column] : A(0);
  return fresh;
}

// Calls f(part, its scratch, its number) for as many parts of the batch as there are threads worth starting.
constexpr int64_t kLeast = 4;  // sequences
int64_t parts_of(const Steps& of) {
  return std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), of.batch / kLeast));
}
template <class A, class F> void in_parts(const Steps& of, const Tensor& like, int64_t panel, F f) {
  const int64_t parts = parts_of(of), most = (of.batch + parts - 1) / parts;
  const int64_t size = padded(scratch_size(most, of.size, panel), 64 / sizeof(A));
  Tensor scratch = table_like(like, {parts * size}, like.scalar_type());
  torch::stable::parallel_for(0, parts, 1, [&](int64_t i, int64_t end) {
    for (; i < end; ++i)
      f(Part{of.batch * i / parts, of.batch * (i + 1) / parts}, pointer<A>(scratch) + i * size, i);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm(
    const Tensor& inputs, const Tensor& h, const Tensor& c, const Tensor& weight, const Tensor& norm,
    const Tensor& norm_c, const Tensor& bias_c, const Optional& lengths, double eps, bool keep) {
  const auto [steps, batch, size] = check(inputs, h, c, weight, norm, norm_c, bias_c, lengths);
  const Steps of{steps, batch, size};
  const ScalarType dtype = inputs.scalar_type();
  const int64_t rows = keep ? steps : 1;
  Tensor out = table_like(inputs, {steps, batch, size}, dtype), cell = table_like(inputs, {rows, batch, size}, dtype);
  Tensor sums = table_like(inputs, {rows, batch, 4 * size}, dtype);
  Tensor gates = table_like(inputs, {rows, batch, 4 * size}, dtype);
  Tensor stats = table_like(inputs, {rows, batch, kStats}, dtype);
  if (inputs.numel() == 0) return {out, cell, sums, gates, stats};
  dispatch(dtype, [&](auto type) {
    using A = decltype(type);
    const LstmKernels<A>& run = kernels<A>().lstm;
    const Tensor panels = packed<A>(weight, true, run.panel);
    LstmJob<A> job{steps, batch, size, keep};
    job.inputs = pointer<A>(inputs), job.first_h = pointer<A>(h), job.first_c = pointer<A>(c);
    job.weight = pointer<A>(panels), job.norm = pointer<A>(norm), job.norm_c = pointer<A>(norm_c);
    job.bias_c = pointer<A>(bias_c), job.lengths = lengths ? pointer<int64_t>(*lengths) : nullptr, job.eps = eps;
    job.out = pointer<A>(out), job.cell = pointer<A>(cell), job.sums = pointer<A>(sums);
    job.gates = pointer<A>(gates), job.stats = pointer<A>(stats);
    in_parts<A>(of, inputs, run.panel, [&](const Part& part, A* scratch, int64_t) { run.forward(job, part, scratch); });
  });
  return {out, cell, sums, gates, stats};
}

// Gradients of the inputs, of W h, of the first h and c, and of norm, norm_c and bias_c, these one after another.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_backward(
    const Tensor& g, const Tensor& g_c, const Tensor& h, const Tensor& c, const Tensor& weight, const Tensor& norm,
    const Tensor& norm_c, const Tensor& bias_c, const Optional& lengths, const Tensor& cell, const Tensor& sums,
    const Tensor& gates, const Tensor& stats) {
  const auto [steps, batch, size] = check(gates, h, c, weight, norm, norm_c, bias_c, lengths);
  const Steps of{steps, batch, size};
  const ScalarType dtype = gates.scalar_type();
  check(g, gates, {steps, batch, size}, "the gradient"), check(g_c, gates, {batch, size}, "the gradient of c");
  check(cell, gates, {steps, batch, size}, "cell"), check(sums, gates, {steps, batch, 4 * size}, "sums");
  check(stats, gates, {steps, batch, kStats}, "stats");
  Tensor grad_inputs = table_like(gates, {steps, batch, 4 * size}, dtype);
  Tensor grad_sums = table_like(gates, {steps, batch, 4 * size}, dtype);
  Tensor grad_h = table_like(gates, {batch, size}, dtype), grad_c = table_like(gates, {batch, size}, dtype);
  Tensor grad_norms = table_like(gates, {6 * size}, dtype);
  torch::stable::copy_(grad_c, g_c);
  dispatch(dtype, [&](auto type) {
    using A = decltype(type);
    const LstmKernels<A>& run = kernels<A>().lstm;
    const Tensor panels = packed<A>(weight, false, run.panel);
    LstmJob<A> job{steps, batch, size, 1};
    job.first_c = pointer<A>(c), job.weight = pointer<A>(panels), job.norm = pointer<A>(norm);
    job.norm_c = pointer<A>(norm_c), job.bias_c = pointer<A>(bias_c);
    job.lengths = lengths ? pointer<int64_t>(*lengths) : nullptr, job.grad = pointer<A>(g);
    job.cell = pointer<A>(cell), job.sums = pointer<A>(sums), job.gates = pointer<A>(gates);
    job.stats = pointer<A>(stats), job.grad_h = pointer<A>(grad_h), job.grad_c = pointer<A>(grad_c);
    job.grad_inputs = pointer<A>(grad_inputs), job.grad_sums = pointer<A>(grad_sums);
    const int64_t parts = parts_of(of);
    const auto norms = numbers<double>(parts * 6 * size);
    std::fill_n(norms.get(), parts * 6 * size, 0.0);
    in_parts<A>(of, gates, run.panel, [&](const Part& part, A* scratch, int64_t i) {
      run.backward(job, part, scratch, norms.get() + i * 6 * size);
    });
    for (int64_t k = 0; k < 6 * size; ++k) {
      double all = 0;
      for (int64_t i = 0; i < parts; ++i) all += norms[i * 6 * size + k];
      pointer<A>(grad_norms)[k] = A(all);
    }
  });
  return {grad_inputs, grad_sums, grad_h, grad_c, grad_norms};
}

}  // namespace
}  // namespace normwise

STABLE_TORCH_LIBRARY_FRAGMENT(normwise, m) {
  m.def("lstm(Tensor inputs, Tensor h, Tensor c, Tensor weight, Tensor norm, Tensor norm_c, Tensor bias_c, "
        "Tensor? lengths, float eps, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("lstm_backward(Tensor g, Tensor g_c, Tensor h, Tensor c, Tensor weight, Tensor norm, Tensor norm_c, "
        "Tensor bias_c, Tensor? lengths, Tensor cell, Tensor sums, Tensor gates, Tensor stats) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(normwise, CPU, m) {
  m.impl("lstm", TORCH_BOX(&normwise::lstm));
  m.impl("lstm_backward", TORCH_BOX(&normwise::lstm_backward));
}
