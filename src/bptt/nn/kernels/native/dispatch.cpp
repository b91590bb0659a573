// The plain C entries: the machine's instruction sets, threads from the OpenMP runtime the process has, scratch.
#include <algorithm>
#include <cstdlib>

#include "layer.h"
#include "team.h"

namespace bptt {

extern const Kernels table_generic;
#if defined(BPTT_X86)
extern const Kernels table_avx2, table_avx512;
#endif

static const Kernels *const ALL[] = {
    &table_generic,
#if defined(BPTT_X86)
    &table_avx2,
    &table_avx512,
#endif
};

static Parallel parallel = nullptr;
static int (*thread_number)() = nullptr;
static int (*thread_count)() = nullptr;

struct Work {
    void (*body)(int, int, void *);
    void *data;
};

static void within(void *data) {
    Work &work = *static_cast<Work *>(data);
    work.body(thread_number(), thread_count(), work.data);
}

void run(int threads, void (*body)(int, int, void *), void *data) {
    if (!parallel || threads <= 1) return body(0, 1, data);
    Work work{body, data};
    parallel(within, &work, unsigned(threads), 0);
}

static const Kernels *usable(int32_t i) {
    for (const Kernels *kernels : ALL)
        if (kernels->supported() && i-- == 0) return kernels;
    return nullptr;
}

// A thread's scratch, kept for its next call.
struct Scratch {
    void *at = nullptr;
    size_t bytes = 0;
    Scratch() = default;
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    ~Scratch() { free(at); }

    void *of(size_t wanted) {
        if (wanted <= bytes) return at;
        free(at);
        if (posix_memalign(&at, 64, wanted)) at = nullptr;
        bytes = at ? wanted : 0;
        return at;
    }
};

static thread_local Scratch scratch;

static int32_t enter(int32_t isa, const Sequence *q, void (*pass)(const Kernels &, const Sequence &, const Room &)) {
    for (int64_t i = 0; q->ids && i < q->total; ++i)
        if (q->ids[i] < 0 || q->ids[i] >= q->distinct) return 2;
    const Kernels &kernels = *usable(isa);
    const Shape &shape = kernels.shape(q->cell);
    const int64_t gates = shape.gates * q->units, carry = q->rows * q->units;
    const int64_t products = std::max(kernels.product_packed(gates, 0), kernels.product_packed(q->inputs, q->units));
    const int64_t packed = std::max(kernels.packed(q->cell, q->units), products);
    const int64_t table = q->ids ? q->distinct * shape.saved * q->units : 0;
    const int64_t pointers = q->total, numbers = q->ids ? q->total + q->distinct + 1 : 0;  // 8 bytes each
    const int64_t keys = q->noisy && (pass == bptt::forward || q->d_by_unit) ? q->steps : 0;
    const int64_t before = (pointers + numbers + keys + 7) / 8 * 64;
    const int64_t saved = q->gates ? 0 : q->total * shape.saved * q->units, cells = q->cells || shape.states < 2 ? 0 : q->total * q->units;
    const int64_t d_gates = q->d_gates || pass == bptt::forward ? 0 : q->total * shape.saved * q->units;
    const int64_t all = packed + table + carry + gates + saved + cells + d_gates;
    char *at = static_cast<char *>(scratch.of(size_t(before) + size_t(all) * sizeof(float)));
    if (!at) return 1;
    float *floats = reinterpret_cast<float *>(at + before), *after = floats + packed + table;
    int64_t *order = reinterpret_cast<int64_t *>(at) + pointers;
    Sequence sequence = *q;
    if (saved) sequence.gates = after + carry + gates;
    if (cells) sequence.cells = after + carry + gates + saved;
    if (d_gates) sequence.d_gates = after + carry + gates + saved + cells;
    pass(kernels, sequence, {floats, after, after + carry, reinterpret_cast<const float **>(at), floats + packed, order,
                       keys ? reinterpret_cast<StepKey *>(order + numbers) : nullptr});
    return 0;
}

static int32_t enter(int32_t isa, const Readout *r) {
    const int64_t N = r->rows, V = r->classes;
    int64_t counted = 0;
    for (int64_t i = 0; i < N; ++i) {
        if (r->targets[i] == r->ignored) continue;
        if (r->targets[i] < 0 || r->targets[i] >= V) return 2;
        ++counted;
    }
    const Kernels &kernels = *usable(isa);
    const int64_t room = readout_room(kernels, *r);
    float *at = static_cast<float *>(scratch.of(size_t(room + (r->reduction ? 2 * N : 0)) * sizeof(float)));
    if (!at) return 1;
    if (!r->reduction) return readout(kernels, *r, at), 0;
    Readout each = *r;
    const float divisor = r->reduction == MEAN ? float(counted) : 1.f;
    if (r->losses) each.losses = at + room;
    std::fill_n(at + room + N, N, (r->d_losses ? *r->d_losses : 1.f) / divisor);
    each.d_losses = at + room + N;
    readout(kernels, each, at);
    double sum = 0;
    for (int64_t i = 0; i < N && r->losses; ++i) sum += each.losses[i];
    if (r->losses) *r->losses = float(sum) / divisor;
    return 0;
}

}  // namespace bptt

extern "C" {

void bptt_use_openmp(Parallel run, int (*thread)(), int (*threads)()) {
    bptt::parallel = run, bptt::thread_number = thread, bptt::thread_count = threads;
}

const char *bptt_isa(int32_t i) {
    const bptt::Kernels *kernels = bptt::usable(i);
    return kernels ? kernels->name : nullptr;
}

int32_t bptt_numbers() { return int32_t(sizeof(Sequence) / 8); }

int32_t bptt_readout(int32_t isa, const Readout *readout) { return bptt::enter(isa, readout); }
int32_t bptt_absorb(int32_t isa, const Influence *influence) { return bptt::usable(isa)->absorb(*influence), 0; }
int32_t bptt_pull(int32_t isa, const Influence *influence) { return bptt::usable(isa)->pull(*influence), 0; }
int32_t bptt_forward(int32_t isa, const Sequence *sequence) { return bptt::enter(isa, sequence, bptt::forward); }
int32_t bptt_backward(int32_t isa, const Sequence *sequence) { return bptt::enter(isa, sequence, bptt::backward); }
}
