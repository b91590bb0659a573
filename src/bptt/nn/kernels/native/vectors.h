// Vectors of LANES floats, the product of a few rows with a packed panel, and the activations.
// Included by one source that is compiled once for each instruction set, in a namespace of its own.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "parts.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace bptt {
namespace BPTT_ISA {

constexpr int LANES = BPTT_LANES;
typedef float V __attribute__((vector_size(LANES * 4)));
typedef int32_t I __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE V all(float x) { return V{} + x; }

// Load the first n floats at p, with zeros after them; and store them.
INLINE V load(const float *p, int64_t n) {
    if (n >= LANES) return *(const Unaligned *)p;
#if defined(__AVX512F__)
    return (V)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
#else
    V v = {};
    std::memcpy(&v, p, n * sizeof(float));
    return v;
#endif
}

INLINE void store(float *p, V v, int64_t n) {
    if (n >= LANES)
        *(Unaligned *)p = v;
    else
#if defined(__AVX512F__)
        _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
#else
        std::memcpy(p, &v, n * sizeof(float));
#endif
}

// Each pair a[i], a[i + D] swaps its blocks of D lanes across the diagonal.
template <int D> INLINE void exchange(V (&a)[LANES]) {
    I low{}, high{};
    for (int lane = 0; lane < LANES; ++lane) {
        low[lane] = lane & D ? lane - D + LANES : lane;
        high[lane] = lane & D ? lane + LANES : lane + D;
    }
    for (int i = 0; i < LANES; ++i)
        if (!(i & D)) {
            const V x = a[i], y = a[i + D];
#if defined(__clang__)
            for (int lane = 0; lane < LANES; ++lane) {
                a[i][lane] = lane & D ? y[lane - D] : x[lane];
                a[i + D][lane] = lane & D ? y[lane] : x[lane + D];
            }
#else
            a[i] = __builtin_shuffle(x, y, low), a[i + D] = __builtin_shuffle(x, y, high);
#endif
        }
    if constexpr (2 * D < LANES) exchange<2 * D>(a);
}

// out[k stride + lane] = in[lane lda + k] for the first K k; zeros in the lanes from n on.
INLINE void transposed(const float *in, int64_t lda, int64_t n, int64_t K, float *out, int64_t stride) {
    for (int64_t k = 0; k < K; k += LANES) {
        V block[LANES];
        for (int lane = 0; lane < LANES; ++lane) block[lane] = lane < n ? load(in + lane * lda + k, K - k) : V{};
        exchange<1>(block);
        for (int i = 0; i < LANES; ++i)
            if (k + i < K) *(V *)(out + (k + i) * stride) = block[i];
    }
}

// Lane i of the result is the sum of the lanes of a[i].
template <int D = 1> INLINE V folded(V (&a)[LANES]) {
    I same{}, other{};
    for (int lane = 0; lane < LANES; ++lane) {
        same[lane] = lane & D ? lane + LANES : lane;
        other[lane] = same[lane] ^ D;
    }
    for (int i = 0; i < LANES; i += 2 * D) {
        const V x = a[i], y = a[i + D];
#if defined(__clang__)
        for (int lane = 0; lane < LANES; ++lane) a[i][lane] = lane & D ? y[lane] + y[lane ^ D] : x[lane] + x[lane ^ D];
#else
        a[i] = __builtin_shuffle(x, y, same) + __builtin_shuffle(x, y, other);
#endif
    }
    if constexpr (2 * D < LANES) return folded<2 * D>(a);
    return a[0];
}

// out[r ldo + i] = Σ_k a[r][k] w[i ldw + k] for LANES i, of which the first n exist: nothing is packed, w is read once.
template <int ROWS> INLINE void dots(const float *const *a, const float *w, int64_t ldw, int64_t n, int64_t K, float *out, int64_t ldo) {
    constexpr int UNITS = LANES / ROWS;
    for (int64_t i = 0; i < LANES && i < n; i += UNITS) {
        V sum[LANES] = {};
        const float *row[UNITS];
        for (int u = 0; u < UNITS; ++u) row[u] = w + (i + u < n ? i + u : n - 1) * ldw;
        auto add = [&](int64_t k, int64_t n) __attribute__((always_inline)) {
            V x[ROWS];
            for (int r = 0; r < ROWS; ++r) x[r] = load(a[r] + k, n);
            for (int u = 0; u < UNITS; ++u) {
                const V y = load(row[u] + k, n);
                for (int r = 0; r < ROWS; ++r) sum[r * UNITS + u] += x[r] * y;
            }
        };
        int64_t k = 0;
        for (; k + LANES <= K; k += LANES) add(k, LANES);
        if (k < K) add(k, K - k);
        const V found = folded(sum);
        for (int r = 0; r < ROWS; ++r) std::memcpy(out + r * ldo + i, (const float *)&found + r * UNITS, UNITS * sizeof(float));
    }
}

// f(0), ..., f(N - 1), written out: a loop over an array would keep it in memory.
template <class F, int... N> INLINE void each(F f, std::integer_sequence<int, N...>) { (f(N), ...); }
template <int N, class F> INLINE void each(F f) { each(f, std::make_integer_sequence<int, N>()); }

// sum[r][v] = Σ_k a[r lda + k step] panel[k][v], rows of the panel `ldb` floats apart. Few rows keep several sums, since
// each addition waits for the last one.
template <int ROWS, int WIDTH>
INLINE void multiply(V (&sum)[ROWS][WIDTH], const float *a, int64_t lda, const float *panel, int64_t K, int64_t step = 1, int64_t ldb = WIDTH * LANES) {
    constexpr int ALL = ROWS * WIDTH, SUMS = ALL >= 8 ? 1 : ALL >= 4 ? 2 : 4, GROUPS = (ROWS + 2) / 3;
    V sums[SUMS][ALL];
    const float *rows[GROUPS];  // of three rows, since x86 has addresses p, p + l and p + 2 l
    each<GROUPS>([&](int g) __attribute__((always_inline)) { rows[g] = a + 3 * g * lda; });
    each<SUMS * ALL>([&](int i) __attribute__((always_inline)) { sums[i / ALL][i % ALL] = V{}; });
    const auto add = [&](int s) __attribute__((always_inline)) {
        each<ROWS>([&](int r) __attribute__((always_inline)) {
            const float x = rows[r / 3][r % 3 * lda];
            each<WIDTH>([&](int v) __attribute__((always_inline)) { sums[s][r * WIDTH + v] += x * ((const V *)panel)[v]; });
        });
        each<GROUPS>([&](int g) __attribute__((always_inline)) { rows[g] += step; });
        panel += ldb;
    };
    int64_t k = 0;
    for (; k + SUMS <= K; k += SUMS) each<SUMS>(add);
    for (; k < K; ++k) add(0);
    each<ALL>([&](int i) __attribute__((always_inline)) {
        for (int s = 1; s < SUMS; ++s) sums[0][i] += sums[s][i];
        sum[i / WIDTH][i % WIDTH] = sums[0][i];
    });
}

// The same product with the columns [0, n) of w (K, .), read in place.
template <int ROWS, int WIDTH>
INLINE void multiply_unpacked(V (&sum)[ROWS][WIDTH], const float *a, int64_t lda, const float *w, int64_t ldw, int64_t n, int64_t K) {
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < WIDTH; ++v) sum[r][v] = V{};
    for (int64_t k = 0; k < K; ++k, w += ldw)
        for (int v = 0; v < WIDTH && n > v * LANES; ++v) {
            const V y = load(w + v * LANES, n - v * LANES);
            for (int r = 0; r < ROWS; ++r) sum[r][v] += a[r * lda + k] * y;
        }
}

// After a panel of K rows of `width` vectors one more: its product with a state (K,), zeros where null. Infinite weights
// make it NaN.
INLINE void of_state(float *panel, int64_t width, int64_t K, const float *state) {
    for (int64_t v = 0; v < width; ++v, panel += LANES) {
        V sum{};
        for (int64_t k = 0; k < K; ++k) sum += (state ? state[k] : 0.f) * *(const V *)(panel + k * width * LANES);
        *(V *)(panel + K * width * LANES) = sum;
    }
}

// e^r - 1 with r = x - n ln 2 in [-½ ln 2, ½ ln 2]; |x| <= 87.33. `power` gets 2^n.
INLINE V reduced(V x, V &power) {
    V shifted = x * 1.44269504088896f + 12582912.f;  // 1.5 2^23: the rounded quotient in the last bits
    V n = shifted - 12582912.f;
    V r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    power = (V)(((I)shifted + (127 - 0x4b400000)) << 23);
    return p * (r * r) + r;
}

// e^x - 1 = 2^n (e^r - 1) + 2^n - 1
INLINE V expm1(V x, V &power) {
    const V q = reduced(x, power);
    return q * power + (power - 1.f);
}

// 1 / x of a finite x, to about one unit in the last place.
INLINE V inverse(V x) {
#if defined(__AVX512F__)
    const V r = (V)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);  // without maskz GCC 12 warns of its own header
    return r * (2.f - x * r);
#else
    return 1.f / x;
#endif
}

// NaN passes through both, since comparisons with it are false. Below the smallest normal number the sigmoid is 0, as is
// everything here: a state of 1e19, squared in a gradient, would make any other small value large.
INLINE V sigmoid(V x) {
    const I none = x < -87.33f;
    x = none ? all(-87.33f) : x > 87.f ? all(87.f) : x;
    V power, y = inverse(2.f + expm1(-x, power));
    return none ? V{} : y;
}

// (e^2a - 1) / (e^2a + 1) for a = |x|, but 1 - 2 / (e^2a + 1) where that is more exact: backward needs 1 - h h.
INLINE V tanh(V x) {
    V a = (V)((I)x & 0x7fffffff);
    a = a > 9.02f ? all(9.02f) : a;
    V power, e = expm1(a + a, power), part = (a < 0.65f ? e : all(2.f)) * inverse(e + 2.f);
    part = a < 0.65f ? part : 1.f - part;
    return (V)((I)part | ((I)x & INT32_MIN));
}

// ln(1 + e^x) = max(x, 0) + ln(1 + z), z = e^-|x|: 2 artanh(t) for t = z / (2 + z) in (0, 1/3], as a series.
INLINE V softplus(V x) {
    V a = (V)((I)x | INT32_MIN), power;
    a = a < -87.33f ? all(-87.33f) : a;
    const V q = reduced(a, power), z = q * power + power, t = z / (2.f + z), w = t * t;
    V p = w * (1.f / 15) + 1.f / 13;
    p = p * w + 1.f / 11;
    p = p * w + 1.f / 9;
    p = p * w + 1.f / 7;
    p = p * w + 1.f / 5;
    p = p * w + 1.f / 3;
    return (x > 0.f ? x : x == x ? V{} : x) + 2.f * (p * w * t + t);
}

}  // namespace BPTT_ISA
}  // namespace bptt
