// Threads of one call: rows and columns of the state divided among them, and the barrier where columns are.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#if defined(__linux__) || defined(__APPLE__)
#include <sched.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace bptt {

struct alignas(64) Barrier {
    std::atomic<int> waiting{0};
    std::atomic<int> round{0};

    void wait(int members) {
        if (members <= 1) return;
        int now = round.load(std::memory_order_relaxed);
        if (waiting.fetch_add(1, std::memory_order_acq_rel) == members - 1) {
            waiting.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round.load(std::memory_order_acquire) == now; ++spins) {
            if (spins < 4096) {
#if defined(__SSE__)
                _mm_pause();
#endif
            } else {  // the thread that is waited for may have no core
#if defined(__linux__) || defined(__APPLE__)
                sched_yield();
#endif
            }
        }
    }
};

// One thread's part: rows [row0, row1) and panels [panel0, panel1); the barrier joins the `members` with its rows.
struct Part {
    int64_t row0 = 0, row1 = 0, panel0 = 0, panel1 = 0;
    Barrier *barrier = nullptr;
    int members = 1;
    void wait() const { barrier->wait(members); }
};

// Rows are divided first, at least ROWS to a thread, since they need no barrier per step; the remaining threads share
// columns.
inline Part divide(int thread, int threads, int64_t rows, int64_t panels, Barrier *barriers) {
    const int64_t ROWS = 8;
    int64_t groups = std::clamp<int64_t>(rows / ROWS, 1, threads);
    int64_t columns = std::min<int64_t>(threads / groups, panels);
    Part part;
    if (thread >= groups * columns) return part;
    int64_t group = thread / columns, column = thread % columns;
    part.row0 = rows * group / groups, part.row1 = rows * (group + 1) / groups;
    part.panel0 = panels * column / columns, part.panel1 = panels * (column + 1) / columns;
    part.barrier = barriers + group;
    part.members = int(columns);
    return part;
}

// Denormals count as zero while it lives, so that vanishing cotangents cost nothing. The caller's setting is restored.
class Flush {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();

  public:
    Flush() { _mm_setcsr(before | 0x8040); }
    ~Flush() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;

  public:
    Flush() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" : : "r"(before | (1u << 24)));
    }
    ~Flush() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#else
  public:
    Flush() {}
#endif
    Flush(const Flush &) = delete;
    Flush &operator=(const Flush &) = delete;
};

// Runs body(thread, threads) on as many threads as the runtime gives, `threads` at most.
void run(int threads, void (*body)(int thread, int threads, void *data), void *data);

}  // namespace bptt
