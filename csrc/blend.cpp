// Binding of the blends: check, dispatch, register. No arithmetic.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "arguments.h"
#include "blend.h"

namespace normwise {
namespace {

// What both ways of a blend are told besides the tensors of the job, kept alive while the kernels read it.
class Told {
 public:
  Told(const Batch& batch, const Optional& own, const Optional& pooled, const Optional& bias, const Optional& pool,
       int64_t pools, double eps, const Optional& known_mean, const Optional& known_var, double r_max, double d_max,
       const Optional& gain, const Optional& lift)
      : channels(batch.shape.c), pools(pools), eps(eps), r_max(r_max), d_max(d_max),
        own(weights(own, batch, "own")), pooled(weights(pooled, batch, "pooled")), bias(weights(bias, batch, "bias")),
        pool(pool), known_mean(as_table(known_mean, batch.x, channels, "known_mean")),
        known_var(as_table(known_var, batch.x, channels, "known_var")),
        gain(as_table(gain, batch.x, channels, "gain")), lift(as_table(lift, batch.x, channels, "lift")) {
    STD_TORCH_CHECK(gain.has_value() == lift.has_value() && (!gain || pooled), "normwise: gain and lift come together, "
                    "for a pooled part");
    STD_TORCH_CHECK(known_mean.has_value() == known_var.has_value(), "normwise: known_mean and known_var come together");
    STD_TORCH_CHECK(!known_mean || (pools == 1 && pooled), "normwise: known statistics need one pool, got ", pools);
    STD_TORCH_CHECK(pools >= 1 && (pool || pools == 1), "normwise: several pools need the pool of each instance");
    if (pool) check_pool(batch.shape.n);
  }

  template <class A> Mixture<A> mixture() const {
    return {at<A>(own), at<A>(pooled), at<A>(bias), pool ? pointer<int64_t>(*pool) : nullptr, pools, eps,
            pointer<A>(known_mean), pointer<A>(known_var), r_max, d_max, pointer<A>(gain), pointer<A>(lift)};
  }

 private:
  static Optional weights(const Optional& t, const Batch& batch, const char* name) {
    const int64_t planes = batch.shape.n * batch.shape.c;
    return as_table(t, batch.x, t && t->numel() == planes ? planes : batch.shape.c, name);
  }

  void check_pool(int64_t instances) const {
    STD_TORCH_CHECK(pool->is_cpu() && pool->is_contiguous() && pool->scalar_type() == ScalarType::Long &&
                    pool->numel() == instances, "normwise: pool must be int64, dense, one for each instance");
    for (int64_t n = 0; n < instances; ++n) {
      const int64_t k = pointer<int64_t>(*pool)[n];
      STD_TORCH_CHECK(k >= 0 && k < pools, "normwise: the pool of an instance must be from 0 to ", pools - 1, ", got ", k);
    }
  }

  template <class A> Weights<A> at(const Optional& t) const {
    return {pointer<A>(t), t && t->dim() == 2 && t->size(0) != 1 ? channels : 0};
  }

  int64_t channels, pools;
  double eps, r_max, d_max;
  Optional own, pooled, bias, pool, known_mean, known_var, gain, lift;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> blend(
    const Tensor& given, const Optional& own, const Optional& pooled, const Optional& bias, const Optional& pool,
    int64_t pools, double eps, const Optional& known_mean, const Optional& known_var, double r_max, double d_max,
    const Optional& gain, const Optional& lift, const Optional& residual, int64_t act, double low, double high) {
  check(given);
  const Batch batch(given);
  as_floor({}, given, act);
  const Told told(batch, own, pooled, bias, pool, pools, eps, known_mean, known_var, r_max, d_max, gain, lift);
  const Optional extra = residual ? Optional(batch.matching(*residual, "residual")) : Optional();
  const auto table = [&](int64_t rows) { return table_like(given, {rows, batch.shape.c}, table_dtype(given)); };
  Tensor out = batch.like(), mean = table(batch.shape.n), var = table(batch.shape.n);
  Tensor pool_mean = table(pooled ? pools : 0), pool_var = table(pooled ? pools : 0);
  dispatch(given.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    if (given.numel() == 0) {
      for (const Tensor& t : {mean, var, pool_mean, pool_var}) std::fill_n(pointer<A>(t), t.numel(), A(NAN));
      return;
    }
    Job<T> job = job_of<T>(batch, activation(act, low, high), {}, extra);
    job.out = batch.grid<T>(out);
    Blend<T>(job, batch.shape, told.mixture<A>())
        .forward(pointer<A>(mean), pointer<A>(var), pointer<A>(pool_mean), pointer<A>(pool_var));
  });
  return {out, mean, var, pool_mean, pool_var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> blend_backward(
    const Tensor& g, const Tensor& given, const Tensor& mean, const Tensor& var, const Optional& own,
    const Optional& pooled, const Optional& bias, const Optional& pool, int64_t pools, double eps,
    const Optional& known_mean, const Optional& known_var, double r_max, double d_max, const Optional& gain,
    const Optional& lift, const Optional& extra, int64_t act, double low, double high, bool input) {
  check(given);
  const Batch batch(given);
  as_floor({}, given, act);
  const Told told(batch, own, pooled, bias, pool, pools, eps, known_mean, known_var, r_max, d_max, gain, lift);
  const int64_t planes = batch.shape.n * batch.shape.c;
  const Optional m = as_table(mean, given, planes, "mean"), v = as_table(var, given, planes, "var");
  const Gradients grads(batch, g, extra, act, input);
  const auto like = [&](const Optional& t) {
    return table_like(given, t ? Sizes(t->sizes().begin(), t->sizes().end()) : Sizes{0}, table_dtype(given));
  };
  Tensor own_grad = like(own), pooled_grad = like(pooled), bias_grad = like(bias);
  Tensor gain_grad = like(gain), lift_grad = like(lift);
  dispatch(given.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = Acc<T>;
    if (given.numel() == 0) {
      for (const Tensor& t : {own_grad, pooled_grad, bias_grad, gain_grad, lift_grad})
        std::fill_n(pointer<A>(t), t.numel(), A(0));
      return;
    }
    Job<T> job = grads.job<T>(activation(act, low, high));
    const auto to = [](const Optional& weight, const Tensor& t) { return weight ? pointer<A>(t) : nullptr; };
    Blend<T>(job, batch.shape, told.mixture<A>())
        .backward(pointer<A>(m), pointer<A>(v), input,
                  {to(own, own_grad), to(pooled, pooled_grad), to(bias, bias_grad), to(gain, gain_grad),
                   to(lift, lift_grad)});
  });
  return {grads.out, own_grad, pooled_grad, bias_grad, gain_grad, lift_grad, grads.extra_grad};
}

}  // namespace
}  // namespace normwise

STABLE_TORCH_LIBRARY_FRAGMENT(normwise, m) {
  m.def("blend(Tensor x, Tensor? own, Tensor? pooled, Tensor? bias, Tensor? pool, int pools, float eps, "
        "Tensor? known_mean, Tensor? known_var, float r_max, float d_max, Tensor? gain, Tensor? lift, "
        "Tensor? residual, int act, float low, float high) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("blend_backward(Tensor g, Tensor x, Tensor mean, Tensor var, Tensor? own, Tensor? pooled, Tensor? bias, "
        "Tensor? pool, int pools, float eps, Tensor? known_mean, Tensor? known_var, float r_max, float d_max, "
        "Tensor? gain, Tensor? lift, Tensor? extra, int act, float low, float high, bool input) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(normwise, CPU, m) {
  m.impl("blend", TORCH_BOX(&normwise::blend));
  m.impl("blend_backward", TORCH_BOX(&normwise::blend_backward));
}
