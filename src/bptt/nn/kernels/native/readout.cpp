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

static float largest(const float *z, int64_t n) {
    V most = all(-INFINITY);
    for (int64_t j = 0; j < n; j += LANES) {
        const V x = *(const V *)(z + j);
        most = x > most ? x : most;
    }
    float found = most[0];
    for (int lane = 1; lane < LANES; ++lane) found = most[lane] > found ? most[lane] : found;
    return found;
}

static float sum_of(V x) {
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += x[lane];
    return sum;
}

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
        if (s.add) add_row(s, s.row + i, z, wide);
        if (s.differentiate) differentiate_row(s, s.row + i, z, wide);
    }
}

void scores(const Scores &s) { run(s.threads, rows, const_cast<Scores *>(&s)); }

}  // namespace BPTT_ISA
}  // namespace bptt
