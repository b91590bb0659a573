// Tiles of a matrix product, A of a few rows times a panel of B, and the packing of panels. For products.cpp and kept.cpp.
#pragma once
#include <array>
#include <utility>

#include "vectors.h"

namespace bptt {
namespace BPTT_ISA {

constexpr int WIDTH = 2, WIDE = WIDTH * LANES;
constexpr int MOST = (BPTT_REGISTERS - WIDTH - 1) / WIDTH > 12 ? 12 : (BPTT_REGISTERS - WIDTH - 1) / WIDTH;

inline int64_t padded(int64_t n) { return (n + WIDE - 1) / WIDE * WIDE; }

// c (+)= sum + bias, for n columns.
template <int ROWS> INLINE void store_tile(V (&sum)[ROWS][WIDTH], float *c, int64_t ldc, int64_t n, const float *bias, bool add) {
    const auto every = [&](auto f) __attribute__((always_inline)) {
        each<ROWS * WIDTH>([&](int i) __attribute__((always_inline)) {
            const int r = i / WIDTH, v = i % WIDTH;
            if (n > v * LANES) f(sum[r][v], c + r * ldc + v * LANES, v, n - v * LANES);
        });
    };
    if (bias) every([&](V &x, float *, int v, int64_t n) __attribute__((always_inline)) { x += load(bias + v * LANES, n); });
    if (add) every([&](V &x, float *at, int, int64_t n) __attribute__((always_inline)) { x += load(at, n); });
    every([&](V &x, float *at, int, int64_t n) __attribute__((always_inline)) { store(at, x, n); });
}

// c[r][j] (+)= Σ_k a[r][k] panel[k][j] + bias[j], for the n columns of a panel. A has its rows `lda` apart or, transposed,
// its columns; the panel its rows `ldb`, a multiple of LANES.
template <int ROWS, int TRANSPOSED>
void product_tile(const float *a, int64_t lda, const float *panel, int64_t ldb, int64_t K, float *c, int64_t ldc, int64_t n, const float *bias, bool add) {
    V sum[ROWS][WIDTH];
    multiply<ROWS, WIDTH>(sum, a, TRANSPOSED ? 1 : lda, panel, K, TRANSPOSED ? lda : 1, ldb);
    if (n >= WIDE)
        store_tile(sum, c, ldc, WIDE, bias, add);
    else
        store_tile(sum, c, ldc, n, bias, add);
}

using ProductTile = void (*)(const float *, int64_t, const float *, int64_t, int64_t, float *, int64_t, int64_t, const float *, bool);
template <int TRANSPOSED, size_t... N> constexpr auto product_tiles(std::index_sequence<N...>) {
    return std::array<ProductTile, sizeof...(N)>{product_tile<N + 1, TRANSPOSED>...};
}
constexpr std::array<std::array<ProductTile, MOST>, 2> TILES{
    product_tiles<0>(std::make_index_sequence<MOST>()), product_tiles<1>(std::make_index_sequence<MOST>())};

// A row of a panel: the first n columns, zeros beyond them, and where `in` is null.
INLINE void pack_row(const float *in, int64_t n, float *out) {
    for (int v = 0; v < WIDTH; ++v) *(V *)(out + v * LANES) = in && n > v * LANES ? load(in + v * LANES, n - v * LANES) : V{};
}

// A panel of K rows whose n columns are the rows of `in`.
INLINE void pack_transposed(const float *in, int64_t ldb, int64_t n, int64_t K, float *out) {
    for (int v = 0; v < WIDTH; ++v) transposed(in + v * LANES * ldb, ldb, n - v * LANES, K, out + v * LANES, WIDE);
}

}  // namespace BPTT_ISA
}  // namespace bptt
