// Sums of the rows that belong together: the cotangents of the gates for each id, over all steps.
#include "parts.h"
#include "team.h"
#include "vectors.h"

namespace bptt {
namespace BPTT_ISA {

constexpr int WIDTH = 8;
constexpr int64_t AHEAD = 8;  // rows that are prefetched: no machine guesses their order
constexpr int64_t FEW = 64;   // a long running sum would round too often

// Adds `count` rows of A, in `n` columns from the first on.
void sum_rows(const Sums &sums, const int64_t *rows, int64_t count, int64_t first, int64_t n, float *out) {
    V sum[WIDTH] = {}, few[WIDTH] = {};
    for (int64_t i = 0; i < count; ++i) {
        const float *a = sums.a + rows[i] * sums.width + first;
        if (i + AHEAD < count)
            for (int v = 0; v < WIDTH; ++v) __builtin_prefetch(sums.a + rows[i + AHEAD] * sums.width + first + v * LANES);
        for (int v = 0; v < WIDTH && n > v * LANES; ++v) few[v] += load(a + v * LANES, n - v * LANES);
        if (i % FEW == FEW - 1 || i == count - 1)
            for (int v = 0; v < WIDTH; ++v) sum[v] += few[v], few[v] = V{};
    }
    for (int v = 0; v < WIDTH && n > v * LANES; ++v) store(out + v * LANES, sum[v], n - v * LANES);
}

void summation(int thread, int threads, void *data) {
    const Sums &sums = *static_cast<const Sums *>(data);
    const Flush flush;
    const int64_t blocks = (sums.width + WIDTH * LANES - 1) / (WIDTH * LANES);
    for (int64_t group = 0; group < sums.groups; ++group)
        for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; ++block) {
            const int64_t first = block * WIDTH * LANES, begin = sums.begin[group];
            sum_rows(sums, sums.order + begin, sums.begin[group + 1] - begin, first, sums.width - first, sums.c + group * sums.width + first);
        }
}

void sums(const Sums &sums) { run(sums.threads, summation, const_cast<Sums *>(&sums)); }

}  // namespace BPTT_ISA
}  // namespace bptt
