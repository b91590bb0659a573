// The plain C entries: the machine's instruction sets, and threads from the OpenMP runtime the process has.
#include "sequence.h"
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

}  // namespace bptt

extern "C" {

void bptt_use_openmp(Parallel run, int (*thread)(), int (*threads)()) {
    bptt::parallel = run, bptt::thread_number = thread, bptt::thread_count = threads;
}

const char *bptt_isa(int32_t i) {
    const bptt::Kernels *kernels = bptt::usable(i);
    return kernels ? kernels->name : nullptr;
}

int64_t bptt_packed(int32_t isa, int32_t cell, int64_t units) { return bptt::usable(isa)->packed(cell, units); }
void bptt_forward(int32_t isa, const Sequence *sequence) { bptt::usable(isa)->forward(*sequence); }
void bptt_backward(int32_t isa, const Sequence *sequence) { bptt::usable(isa)->backward(*sequence); }
int64_t bptt_product_packed(int32_t isa, const Product *product) { return bptt::usable(isa)->product_packed(*product); }
void bptt_product(int32_t isa, const Product *product) { bptt::usable(isa)->product(*product); }
}
