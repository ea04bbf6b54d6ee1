// One vector of numbers, as wide as the target's registers: load, store, convert, sum, exp, erf.
// Included once per target inside that target's namespace, hence no include guard and no includes.

// VECTOR_BYTES is the target's choice: 64 means AVX-512, 32 AVX2, 16 nothing in particular. (GCC 12 does not
// define __AVX512F__ behind a target pragma.)
constexpr int kBytes = VECTOR_BYTES;

template <class A, int bytes> struct Lanes { typedef A type __attribute__((vector_size(bytes))); };
template <class A> constexpr int kWidth = kBytes / sizeof(A);
template <class A> using Vec = typename Lanes<A, kBytes>::type;
template <class T> constexpr int kWidthFor = kWidth<Acc<T>>;
template <class T> using VecFor = Vec<Acc<T>>;

struct Full {};  // all lanes; an int in its place: only the first lanes

template <class To, class From> inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class A> inline Vec<A> splat(A value) { return Vec<A>{} + value; }

// Which lanes come before n.
template <class A> inline auto before(int n) {
  using Int = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  Vec<Int> index;
  for (int i = 0; i < kWidth<A>; ++i) index[i] = i;
  return index < splat<Int>(n);
}

template <class V> inline V keep(V v, Full) { return v; }
template <class V> inline V keep(V v, int n) {
  return before<std::decay_t<decltype(v[0])>>(n) ? v : V{};
}

// Storage: the lanes of a vector as they stand in memory.
template <class T> struct Stored { using type = Vec<T>; };
template <> struct Stored<BFloat16> { using type = Lanes<uint16_t, kBytes / 2>::type; };
template <> struct Stored<Half> { using type = Lanes<uint16_t, kBytes / 2>::type; };
template <class T> using Raw = typename Stored<T>::type;

inline float to_float(Half h) {
#if defined(__aarch64__)
  return bits<__fp16>(h);
#else  // Maratyszcza's FP16: the exponent is moved by a multiplication, denormals by a subtraction
  const uint32_t w = uint32_t(h.bits) << 16, sign = w & 0x80000000u, twice = w + w;
  const float normal = bits<float>((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const float small = bits<float>((twice >> 17) | (126u << 23)) - 0.5f;
  return bits<float>(sign | bits<uint32_t>(twice < (1u << 27) ? small : normal));
#endif
}

inline Half to_half(float f) {
#if defined(__aarch64__)
  return bits<Half>(static_cast<__fp16>(f));
#else
  const uint32_t w = bits<uint32_t>(f), twice = w + w, sign = w & 0x80000000u;
  const uint32_t bias = std::max(twice & 0xFF000000u, 0x71000000u);
  const float base = (bits<float>(w & 0x7FFFFFFFu) * 0x1.0p+112f) * 0x1.0p-110f;
  const uint32_t rounded = bits<uint32_t>(bits<float>((bias >> 1) + 0x07800000u) + base);
  const uint32_t finite = ((rounded >> 13) & 0x7C00u) + (rounded & 0xFFFu);
  return Half{uint16_t((sign >> 16) | (twice > 0xFF000000u ? 0x7E00u : finite))};
#endif
}


template <class T> inline VecFor<T> convert(const Raw<T>& raw) {
  if constexpr (std::is_same_v<T, BFloat16>) {
#if VECTOR_BYTES == 64  // GCC 12 would widen one half after the other
    return bits<Vec<float>>(bits<Vec<uint32_t>>(_mm512_maskz_cvtepu16_epi32(0xFFFF, bits<__m256i>(raw))) << 16);
#elif VECTOR_BYTES == 32
    return bits<Vec<float>>(bits<Vec<uint32_t>>(_mm256_cvtepu16_epi32(bits<__m128i>(raw))) << 16);
#else
    return bits<Vec<float>>(__builtin_convertvector(raw, Vec<uint32_t>) << 16);
#endif
  } else if constexpr (std::is_same_v<T, Half>) {
#if VECTOR_BYTES == 64
    return bits<Vec<float>>(_mm512_maskz_cvtph_ps(0xFFFF, bits<__m256i>(raw)));
#elif VECTOR_BYTES == 32
    return bits<Vec<float>>(_mm256_cvtph_ps(bits<__m128i>(raw)));
#else
    Vec<float> v;
    for (int i = 0; i < kWidth<float>; ++i) v[i] = to_float(Half{raw[i]});
    return v;
#endif
  } else {
    return raw;
  }
}

// Rounds to nearest even; a NaN stays one.
inline Raw<BFloat16> round_to_bfloat16(Vec<float> v) {
  const auto w = bits<Vec<uint32_t>>(v);
  const auto rounded = (w + 0x7FFFu + ((w >> 16) & 1u)) >> 16;
  const auto nan = (w >> 16) | 0x40u;
#if VECTOR_BYTES == 64
  return bits<Raw<BFloat16>>(_mm512_maskz_cvtepi32_epi16(0xFFFF, bits<__m512i>(v == v ? rounded : nan)));
#else
  return __builtin_convertvector(v == v ? rounded : nan, Raw<BFloat16>);
#endif
}

#ifdef VECTOR_BFLOAT16
// By the instruction of the processor, which takes denormals for zero: those are rounded as elsewhere.
inline Raw<BFloat16> to_bfloat16(Vec<float> v) {
  constexpr int kDenormal = 0x20;
  const __m512 wide = bits<__m512>(v);
  if (__builtin_expect(_mm512_fpclass_ps_mask(wide, kDenormal) != 0, 0)) return round_to_bfloat16(v);
  return bits<Raw<BFloat16>>(_mm512_cvtneps_pbh(wide));
}
#else
inline Raw<BFloat16> to_bfloat16(Vec<float> v) { return round_to_bfloat16(v); }
#endif

template <class T> inline Raw<T> to_stored(VecFor<T> v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(v);
  } else if constexpr (std::is_same_v<T, Half>) {
#if VECTOR_BYTES == 64
    return bits<Raw<Half>>(_mm512_maskz_cvtps_ph(0xFFFF, bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif VECTOR_BYTES == 32
    return bits<Raw<Half>>(_mm256_cvtps_ph(bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
    Raw<Half> raw;
    for (int i = 0; i < kWidth<float>; ++i) raw[i] = to_half(v[i]).bits;
    return raw;
#endif
  } else {
    return v;
  }
}

// Rounded to what T holds: what is counted from there has few digits, and sums of it lose none.
template <class T> inline VecFor<T> as_stored(VecFor<T> v) {
  if constexpr (sizeof(T) == 2) return convert<T>(to_stored<T>(v));
  else return v;
}

template <class T> inline VecFor<T> load(const T* p, Full = {}) {
  Raw<T> raw;
  __builtin_memcpy(&raw, p, sizeof raw);
  return convert<T>(raw);
}

template <class T> inline void store(T* p, VecFor<T> v, Full = {}) {
  const Raw<T> raw = to_stored<T>(v);
  __builtin_memcpy(p, &raw, sizeof raw);
}

// The first n lanes; the others are read as zero and not written.
template <class T> inline VecFor<T> load(const T* p, int n) {
#if VECTOR_BYTES == 64
  const uint32_t lanes = (1u << n) - 1;
  if constexpr (sizeof(T) == 8) return bits<Raw<T>>(_mm512_maskz_loadu_pd(lanes, p));
  else if constexpr (sizeof(T) == 4) return bits<Raw<T>>(_mm512_maskz_loadu_ps(lanes, p));
  else return convert<T>(bits<Raw<T>>(_mm256_maskz_loadu_epi16(lanes, p)));
#else
  T lanes[kWidthFor<T>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}

template <class T> inline void store(T* p, VecFor<T> v, int n) {
#if VECTOR_BYTES == 64
  const uint32_t lanes = (1u << n) - 1;
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, lanes, bits<__m512d>(v));
  else if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, lanes, bits<__m512>(v));
  else _mm256_mask_storeu_epi16(p, lanes, bits<__m256i>(to_stored<T>(v)));
#else
  T lanes[kWidthFor<T>];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}

// Fetches what is read later into the second cache. Any address will do.
template <class T> inline void prefetch(const T* p) { __builtin_prefetch(p, 0, 2); }

// Fetches what is read soon, a page behind p, into the nearest cache: the processor's own guesses end with a page, and
// it sees half as far ahead, in bytes, where values are half as long. Narrow vectors would ask too often for each line.
template <class T> inline void approach([[maybe_unused]] const T* p) {
#if VECTOR_BYTES > 16
  constexpr int kPage = 4096;
  __builtin_prefetch(p + kPage / sizeof(T), 0, 3);
#endif
}

// The same for vector k of consecutive ones: once for each line of 64 bytes.
template <class T> inline void approach(const T* p, int k) {
  if (k * int(sizeof(Raw<T>)) % 64 == 0) approach(p);
}

// Stores whole vectors past the cache: what is written is not needed soon, and need not be read first. Only where
// all addresses are multiples of the vector's size.
template <class T> struct Out {
  bool past;
  Out(bool wanted, const T* first, int64_t step)
      : past(wanted && aligned(reinterpret_cast<intptr_t>(first)) && aligned(step * int64_t(sizeof(T)))) {}
  static bool aligned(int64_t bytes) { return VECTOR_BYTES > 16 && bytes % int64_t(sizeof(Raw<T>)) == 0; }
  void operator()(T* p, VecFor<T> v, int n) const { store(p, v, n); }
  void operator()(T* p, VecFor<T> v, Full) const {
#if VECTOR_BYTES > 16
    const Raw<T> raw = to_stored<T>(v);
    if (!past) __builtin_memcpy(p, &raw, sizeof raw);
    else if constexpr (sizeof raw == 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bits<__m512i>(raw));
    else if constexpr (sizeof raw == 32) _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bits<__m256i>(raw));
    else _mm_stream_si128(reinterpret_cast<__m128i*>(p), bits<__m128i>(raw));
#else
    store(p, v);
#endif
  }
};

template <class A, int bytes = kBytes> inline A sum(typename Lanes<A, bytes>::type v) {
  if constexpr (bytes == sizeof(A)) {
    return v[0];
  } else {
    typename Lanes<A, bytes / 2>::type half[2];
    __builtin_memcpy(half, &v, bytes);
    return sum<A, bytes / 2>(half[0] + half[1]);
  }
}

// Lane i of the result is lane from[i] of v.
template <class V, class I> inline V exchange(V v, I from) {
#if defined(__clang__)
  V moved;
  for (size_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i) moved[i] = v[from[i]];
  return moved;
#else
  return __builtin_shuffle(v, from);
#endif
}

// Lane i of the result is the sum of all lanes of v[i]; v is used up. Halves of two vectors are exchanged and added.
template <class A> inline Vec<A> lane_by_lane(Vec<A> (&v)[kWidth<A>]) {
  using Int = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  Vec<Int> lane;
  for (int i = 0; i < kWidth<A>; ++i) lane[i] = i;
#pragma GCC unroll 8
  for (int half = kWidth<A> / 2; half >= 1; half /= 2) {
    const auto upper = (lane & Int(half)) != 0;
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      const Vec<A> kept = upper ? v[i + half] : v[i], given = upper ? v[i] : v[i + half];
      v[i] = kept + exchange(given, lane ^ Int(half));
    }
  }
  return v[0];
}

// exp to about one unit in the last place (Cephes); a NaN stays one.
inline Vec<float> exp(Vec<float> x) {
  x = x < -87.3f ? splat(-87.3f) : (x > 88.3f ? splat(88.3f) : x);
  const Vec<float> magic = splat(0x1.8p23f);
  const Vec<float> shifted = x * 1.44269504088896341f + magic, n = shifted - magic;
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  for (float c : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
  const auto power = (bits<Vec<int32_t>>(shifted) - bits<Vec<int32_t>>(magic) + 127) << 23;
  return (p * r * r + r + 1.0f) * bits<Vec<float>>(power);
}

// erf as x P(x^2) / Q(x^2), absolute error about 1e-7 (the approximation of Eigen and XLA); -1 and 1 exactly far out.
inline Vec<float> erf(Vec<float> x) {
  constexpr float kEnd = 3.8325069f;
  const Vec<float> x2 = x * x;
  Vec<float> p = x2 * -2.72614225801306e-10f + 2.77068142495902e-08f;
  for (float c : {-2.10102402082508e-06f, -5.69250639462346e-05f, -7.34990630326855e-04f,
                  -2.95459980854025e-03f, -1.60960333262415e-02f}) p = p * x2 + c;
  Vec<float> q = x2 * -1.45660718464996e-05f + -2.13374055278905e-04f;
  for (float c : {-1.68282697438203e-03f, -7.37332916720468e-03f, -1.42647390514189e-02f}) q = q * x2 + c;
  const Vec<float> near = x * p / q;
  return x < -kEnd ? splat(-1.0f) : (x > kEnd ? splat(1.0f) : near);
}

inline Vec<double> exp(Vec<double> x) {
#pragma GCC unroll 1
  for (int i = 0; i < kWidth<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

inline Vec<double> erf(Vec<double> x) {
#pragma GCC unroll 1
  for (int i = 0; i < kWidth<double>; ++i) x[i] = std::erf(x[i]);
  return x;
}
