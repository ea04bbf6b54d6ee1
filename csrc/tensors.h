// Tensors as the kernels see them: N x C x S, spatial positions in one run of equal steps; and new ones.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "parallel.h"

namespace normwise {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;


struct Layout { Shape shape; Strides by; bool known; };

inline Layout layout_of(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t rank = x.dim();
  int64_t s = 1, step = 1, next = -1;
  bool regular = true;
  for (int64_t i = rank - 1; i >= 2; --i) {
    if (sizes[i] == 1) continue;
    if (next < 0) step = strides[i];
    else regular &= strides[i] == next;
    next = strides[i] * sizes[i];
    s *= sizes[i];
  }
  const Strides by{strides[0], strides[1], step};
  const bool side_by_side = sizes[1] == 1 || by.c == 1;
  const bool planes = regular && s > 1 && step == 1, rows = regular && side_by_side && step > 0;
  return {{sizes[0], sizes[1], s, rows && !planes}, {by.n, side_by_side ? 1 : by.c, step}, planes || rows};
}

// Strides of a new tensor like x: its own where it is dense, else packed in the same order of dimensions.
inline Sizes packed_strides(const Tensor& x, const Layout& layout) {
  const auto sizes = x.sizes(), strides = x.strides();
  const Shape& shape = layout.shape;
  const bool dense = (shape.rows ? shape.s == 1 || layout.by.s == shape.c : shape.c == 1 || layout.by.c == shape.s) &&
                     (shape.n == 1 || layout.by.n == shape.c * shape.s);
  if (layout.known && dense) return Sizes(strides.begin(), strides.end());
  Sizes packed(x.dim());
  int64_t step = 1;
  const bool rows = layout.known && shape.rows;
  if (rows) packed[1] = 1, step = shape.c;
  for (int64_t i = x.dim() - 1; i >= 0; --i) {
    if (rows && i == 1) continue;
    packed[i] = step;
    step *= std::max<int64_t>(1, sizes[i]);
  }
  return packed;
}

// The C library maps large blocks anew, those of 32 MB and more each time, and touching them page by page takes
// longer than all arithmetic here. Linux gives 2 MB at a time if asked.
inline void advise_large_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kLarge = 4 << 20, kPage = 2 << 20;
  if (bytes < kLarge) return;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline Tensor allocate(const Tensor& like, const Sizes& sizes, const Sizes& strides, ScalarType dtype) {
  int32_t device = 0, code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), code, device, 0, &handle));
  Tensor fresh(handle);
  advise_large_pages(fresh.data_ptr(), fresh.numel() * int64_t(fresh.element_size()));
  return fresh;
}

inline Tensor table_like(const Tensor& x, const Sizes& sizes, ScalarType dtype) {
  Sizes strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return allocate(x, sizes, strides, dtype);
}

// All tensors of a call laid out like x, which is copied if neither layout fits it.
class Batch {
 public:
  explicit Batch(const Tensor& given) : x(given), layout(layout_of(given)) {
    sizes.assign(x.sizes().begin(), x.sizes().end());
    strides = packed_strides(x, layout);
    if (!layout.known) x = copy(x), layout = layout_of(x);
    shape = layout.shape;
  }

  Tensor like() const { return allocate(x, sizes, strides, x.scalar_type()); }

  Tensor matching(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.dim() == x.dim() && std::equal(sizes.begin(), sizes.end(), t.sizes().begin()), "normwise: ", name,
                    " must have the shape of the input");
    STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), "normwise: ", name, " must have the dtype of the input");
    const Layout other = layout_of(t);
    return other.known && other.shape.rows == shape.rows ? t : copy(t);
  }

  template <class T> Grid<T> grid(const Tensor& t) const {
    using Value = std::remove_const_t<T>;
    const Strides by = layout_of(t).by;
    return {static_cast<Value*>(t.data_ptr()), by};
  }

  Tensor x;
  Layout layout;
  Shape shape;
  Sizes sizes, strides;

 private:
  Tensor copy(const Tensor& t) const {
    Tensor fresh = allocate(t, sizes, strides, t.scalar_type());
    torch::stable::copy_(fresh, t);
    return fresh;
  }
};

}  // namespace normwise
