// Normal numbers for a few rows of a panel. See noise.h; every operation rounds, as in torch.
#include "noise.h"

#include "vectors.h"

namespace bptt {
namespace BPTT_ISA {

typedef uint32_t U __attribute__((vector_size(LANES * 4)));

INLINE V root(V x) {
    V y;
    for (int lane = 0; lane < LANES; ++lane) y[lane] = __builtin_sqrtf(x[lane]);
    return y;
}

// ln u for a normal number u: u = 2^e m with m in [sqrt ½, sqrt 2), a polynomial in m - 1.
INLINE V logarithm(V u) {
    const I e = ((I)u - 0x3f3504f3) >> 23;
    const V f = (V)((I)u - (e << 23)) - 1.f, n = __builtin_convertvector(e, V), z = f * f;
    V p = f * 7.0376836292e-2f + -1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f + -1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f + -1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f + -2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    V y = p * f * z + n * -2.12194440e-4f;
    y = y + z * -0.5f;
    return (y + f) + n * 0.693359375f;
}

// The numbers of a row and 2 LANES units, from the two words of each pair of units.
INLINE void box_muller(U a, U b, float *out) {
    const V u = (__builtin_convertvector((I)(a >> 1), V) + 1.f) * 0x1p-31f;  // in (0, 1]
    const V radius = root(logarithm(u) * -2.f);
    const U quarter = b >> 30;  // of a turn, and where in it, from -1/2 to 1/2
    const V x = __builtin_convertvector((I)(b << 2) >> 8, V) * 0x1p-24f * 1.5707963267948966f, z = x * x;
    V s = z * -1.9515295891e-4f + 8.3321608736e-3f;
    s = s * z + -1.6666654611e-1f;
    s = s * z * x + x;
    V c = z * 2.443315711809948e-5f + -1.388731625493765e-3f;
    c = c * z + 4.166664568298827e-2f;
    c = (c * z * z + z * -0.5f) + 1.f;
    const I odd = (I)(quarter & 1) == 1;
    const V cosine = (V)((I)(odd ? s : c) ^ (I)(((quarter + 1) & 2) << 30));
    const V sine = (V)((I)(odd ? c : s) ^ (I)((quarter & 2) << 30));
    const V even = radius * cosine, uneven = radius * sine;
    for (int lane = 0; lane < LANES; ++lane) out[2 * lane] = even[lane], out[2 * lane + 1] = uneven[lane];
}

// out[r][i]: the number of row + r and the unit first + i, for 2 LANES units; first is even. In two passes, so that the
// processor works on several rows at once: what is done to one of them is a chain in which each operation waits.
void normals(const StepKey &key, int64_t row, int rows, int64_t first, float *out) {
    U lanes, words[2 * NOISY_ROWS];
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] = uint32_t(lane);
    lanes += uint32_t(first / 2);
    for (int r = 0; r < rows; ++r) {
        U a = U{} + uint32_t(row + r), b = lanes;
        threefry<U>(a, b, U{} + key.a, U{} + key.b);
        words[2 * r] = a, words[2 * r + 1] = b;
    }
    for (int r = 0; r < rows; ++r) box_muller(words[2 * r], words[2 * r + 1], out + r * 2 * LANES);
}

}  // namespace BPTT_ISA
}  // namespace bptt
