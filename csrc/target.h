// Lists the kernels of one target. Included like kernels.h, after lstm.h.

template <class T, template <class> class F> constexpr void list(Kernels<T>& planes, Kernels<T>& rows, Act act) {
  using A = Acc<T>;
  const int i = int(act);
  planes.scale_shift[i][0] = plane_scale_shift<T, F, false>, planes.scale_shift[i][1] = plane_scale_shift<T, F, true>;
  planes.reduce_grad[i][0] = plane_reduce_grad<T, F, false, false>;
  planes.apply_grad[i][0] = plane_apply_grad<T, F, false>;
  rows.scale_shift[i][0] = widened<T, narrow_scale_shift<T, F, false>>;
  rows.scale_shift[i][1] = widened<T, narrow_scale_shift<T, F, true>>;
  rows.reduce_grad[i][0] = wide_reduce<T, F<A>, narrow_reduce_grad<T, F, false>>;
  rows.apply_grad[i][0] = widened<T, narrow_apply_grad<T, F, false>>;
  if (act != Act::floor) planes.fixed_grad[i][0] = plane_reduce_grad<T, F, false, true>;
  if (act != Act::floor) rows.fixed_grad[i][0] = wide_reduce<T, F<A>, narrow_fixed_grad<T, F, false>>;
  if (act == Act::none) return;  // without an activation the residual's gradient is g itself
  planes.reduce_grad[i][1] = plane_reduce_grad<T, F, true, false>;
  planes.apply_grad[i][1] = plane_apply_grad<T, F, true>;
  rows.reduce_grad[i][1] = wide_reduce<T, F<A>, narrow_reduce_grad<T, F, true>>;
  rows.apply_grad[i][1] = widened<T, narrow_apply_grad<T, F, true>>;
  if (act != Act::floor) planes.fixed_grad[i][1] = plane_reduce_grad<T, F, true, true>;
  if (act != Act::floor) rows.fixed_grad[i][1] = wide_reduce<T, F<A>, narrow_fixed_grad<T, F, true>>;
}

template <class T> Layouts<T> list() {
  Layouts<T> all{};
  all.planes.moments = plane_moments<T>;
  all.rows.moments = row_moments<T>;
  list<T, None>(all.planes, all.rows, Act::none);
  list<T, Clip>(all.planes, all.rows, Act::clip);
  list<T, Leaky>(all.planes, all.rows, Act::leaky);
  list<T, Silu>(all.planes, all.rows, Act::silu);
  list<T, Gelu>(all.planes, all.rows, Act::gelu);
  list<T, Floor>(all.planes, all.rows, Act::floor);
  all.lstm = {kPanel<Acc<T>>, lstm_forward<Acc<T>>, lstm_backward<Acc<T>>};
  return all;
}

template Layouts<BFloat16> list<BFloat16>();
#ifndef VECTOR_BFLOAT16  // the other dtypes would be the same again
template Layouts<float> list<float>();
template Layouts<double> list<double>();
template Layouts<Half> list<Half>();
#endif
