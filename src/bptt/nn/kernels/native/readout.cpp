// Rows of scores: the logarithm of the sum of their exponentials, block by block, and the cotangents of the scores.
#include <cmath>

#include "parts.h"
#include "team.h"
#include "vectors.h"

namespace bptt {
namespace BPTT_ISA {

// e^x for x <= 0; 0 below the smallest normal number.
INLINE V exponential(V x) {
    const I none = x < -87.33f;
    x = none ? all(-87.33f) : x;
    V power, q = reduced(x, power);
    return none ? V{} : q * power + power;
}

// f of all lanes of x, in each lane.
template <int D = LANES / 2, class F> INLINE V across(V x, F f) {
    I other{};
    for (int lane = 0; lane < LANES; ++lane) other[lane] = lane ^ D;
#if defined(__clang__)
    V y;
    for (int lane = 0; lane < LANES; ++lane) y[lane] = x[lane ^ D];
#else
    const V y = __builtin_shuffle(x, other);
#endif
    x = f(x, y);
    if constexpr (D > 1) return across<D / 2>(x, f);
    return x;
}

static float largest(const float *z, int64_t n) {
    const auto larger = [](V x, V y) __attribute__((always_inline)) { return x > y ? x : y; };
    V most = all(-INFINITY);
    for (int64_t j = 0; j < n; j += LANES) most = larger(*(const V *)(z + j), most);
    return across(most, larger)[0];
}

static float sum_of(V x) {
    return across(x, [](V x, V y) __attribute__((always_inline)) { return x + y; })[0];
}

// All scores of a row at once: its loss, and its cotangents from the same exponentials.
static void whole_row(const Scores &s, int64_t row, float *z, int64_t wide) {
    const bool ignored = s.targets[row] == s.ignored;
    const float picked = ignored ? 0.f : z[s.targets[row]], most = largest(z, wide);
    V terms{};
    for (int64_t j = 0; j < wide; j += LANES) terms += *(V *)(z + j) = exponential(*(const V *)(z + j) - most);
    const float sum = sum_of(terms), d = s.d_losses ? s.d_losses[row] : 1.f, each = d / sum;
    const float norm = most + std::log(sum);
    if (s.norms) s.norms[row] = norm;
    s.losses[row] = ignored ? 0.f : norm - picked;
    if (!s.differentiate) return;
    float *out = s.kept ? s.kept + row * s.classes : z;
    for (int64_t j = 0; j < wide; j += LANES) store(out + j, ignored ? V{} : *(const V *)(z + j) * each, s.count - j);
    if (!ignored) out[s.targets[row]] -= d;
}

// A block of a row's scores.
static void add_row(const Scores &s, int64_t row, float *z, int64_t wide) {
    const int64_t target = s.targets[row] - s.first;
    if (target >= 0 && target < s.count) s.picked[row] = z[target];
    const float old = s.first ? s.largest[row] : -INFINITY, here = largest(z, wide), most = here > old ? here : old;
    V sum{};
    for (int64_t j = 0; j < wide; j += LANES) sum += exponential(*(const V *)(z + j) - most);
    s.sums[row] = sum_of(sum) + (s.first ? s.sums[row] * std::exp(old - most) : 0.f);
    s.largest[row] = most;
    if (s.first + s.count < s.classes) return;
    s.norms[row] = most + std::log(s.sums[row]);
    s.losses[row] = s.targets[row] == s.ignored ? 0.f : s.norms[row] - s.picked[row];
}

static void differentiate_row(const Scores &s, int64_t row, float *z, int64_t wide) {
    const bool ignored = s.targets[row] == s.ignored;
    const float d = s.d_losses ? s.d_losses[row] : 1.f, norm = s.norms[row];
    for (int64_t j = 0; j < wide; j += LANES)
        *(V *)(z + j) = ignored ? V{} : exponential(*(const V *)(z + j) - norm) * d;
    const int64_t target = s.targets[row] - s.first;
    if (!ignored && target >= 0 && target < s.count) z[target] -= d;
}

static void rows(int thread, int threads, void *data) {
    const Scores &s = *static_cast<const Scores *>(data);
    const Flush flush;
    const int64_t wide = (s.count + LANES - 1) / LANES * LANES;
    for (int64_t i = s.rows * thread / threads; i < s.rows * (thread + 1) / threads; ++i) {
        float *z = s.at + i * s.stride;
        for (int64_t j = s.count; j < wide; ++j) z[j] = -INFINITY;
        if (s.add && s.count == s.classes)
            whole_row(s, s.row + i, z, wide);
        else if (s.add)
            add_row(s, s.row + i, z, wide);
        else
            differentiate_row(s, s.row + i, z, wide);
    }
}

void scores(const Scores &s) { run(s.threads, rows, const_cast<Scores *>(&s)); }

}  // namespace BPTT_ISA
}  // namespace bptt
