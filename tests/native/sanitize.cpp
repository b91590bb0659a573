// The kernels against plain loops in double precision, every array on the heap and exactly as long as it must be, so
// that a sanitizer sees any step outside. Usage: sanitize LIBRARY
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "../../src/bptt/nn/kernels/native/sequence.h"

using Doubles = std::vector<double>;
static std::mt19937 random_bits(1);
static int failures = 0, checks = 0;

static double uniform(double scale) { return std::uniform_real_distribution<double>(-scale, scale)(random_bits); }
static int64_t whole(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(random_bits); }
static bool chance(double p) { return std::bernoulli_distribution(p)(random_bits); }

// n floats, random within `scale`, or NaN for what must be written.
struct Floats {
    std::unique_ptr<float[]> at;
    int64_t n;
    explicit Floats(int64_t n, double scale = 0) : at(new float[size_t(n)]), n(n) {
        for (int64_t i = 0; i < n; ++i) at[i] = scale ? float(uniform(scale)) : NAN;
    }
};

// ---- threads for the kernels, as an OpenMP runtime gives them: at most `given`

static unsigned given = 64;
static thread_local int thread_number = 0, thread_count = 1;

static void parallel(void (*body)(void *), void *data, unsigned threads, unsigned) {
    const unsigned n = threads < given ? threads : given;
    std::vector<std::thread> others;
    auto run = [=](unsigned i) { thread_number = int(i), thread_count = int(n), body(data); };
    for (unsigned i = 1; i < n; ++i) others.emplace_back(run, i);
    run(0);
    for (std::thread &other : others) other.join();
    thread_number = 0, thread_count = 1;
}
static int number() { return thread_number; }
static int count() { return thread_count; }

// ---- the library

template <class F> static F *entry(void *library, const char *name) {
    F *found = reinterpret_cast<F *>(dlsym(library, name));
    if (!found) printf("no %s: %s\n", name, dlerror()), exit(2);
    return found;
}
static decltype(bptt_use_openmp) *use_openmp;
static decltype(bptt_isa) *isa_name;
static decltype(bptt_forward) *forward;
static decltype(bptt_backward) *backward;
static decltype(bptt_readout) *readout;
static decltype(bptt_absorb) *absorb;
static decltype(bptt_pull) *pull;

static void compare(const char *isa, const char *what, const float *got, const Doubles &want) {
    double worst = 0, largest = 0.05;  // what is less comes of numbers near 1, which were rounded
    for (double x : want) largest = std::fmax(largest, std::fabs(x));
    for (size_t i = 0; i < want.size(); ++i) {
        const double error = std::fabs(double(got[i]) - want[i]);
        if (!(error <= worst)) worst = error;
    }
    ++checks;
    if (worst <= 1e-5 * largest) return;
    ++failures, printf("%s: %s is wrong by %g of %g\n", isa, what, worst, largest);
}

// ---- one sequence

static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
static double activated(int64_t f, double x) {
    return f == TANH ? std::tanh(x) : f == RELU ? std::fmax(x, 0) : f == SIGMOID ? sigmoid(x) : f == SOFTPLUS ? std::log1p(std::exp(x)) : x;
}
static double slope(int64_t f, double y) {  // where the value is y
    return f == TANH ? 1 - y * y : f == RELU ? y > 0 : f == SIGMOID ? y * (1 - y) : f == SOFTPLUS ? 1 - std::exp(-y) : 1;
}

static void threefry(uint32_t (&x)[2], uint32_t key0, uint32_t key1) {
    const uint32_t keys[] = {key0, key1, key0 ^ key1 ^ 0x1BD11BDAu};
    const int turns[] = {13, 15, 26, 6, 17, 29, 16, 24};
    x[0] += key0, x[1] += key1;
    for (uint32_t round = 0; round < 20; ++round) {
        const int turn = turns[round % 8];
        x[0] += x[1], x[1] = (x[1] << turn | x[1] >> (32 - turn)) ^ x[0];
        if (round % 4 == 3) x[0] += keys[(round / 4 + 1) % 3], x[1] += keys[(round / 4 + 2) % 3] + round / 4 + 1;
    }
}

// The number of a step, row and unit: Box and Muller's transform of two words.
static double normal(int64_t key, int64_t clock, int64_t row, int64_t unit) {
    uint32_t step[] = {uint32_t(clock), uint32_t(uint64_t(clock) >> 32)}, x[] = {uint32_t(row), uint32_t(unit / 2)};
    threefry(step, uint32_t(key), uint32_t(uint64_t(key) >> 32)), threefry(x, step[0], step[1]);
    const double radius = std::sqrt(-2 * std::log(((x[0] >> 1) + 1.0) / 2147483648.0));
    // The quarter of a turn in two bits, then 24 bits of where in it, from -1/2 to 1/2.
    const double angle = std::acos(-1.0) / 2 * ((x[1] >> 30) + (int32_t(x[1] << 2) >> 8) / 16777216.0);
    return radius * (unit % 2 ? std::sin(angle) : std::cos(angle));
}

static int64_t gates_of(int64_t cell) { return cell == GRU ? 3 : cell == LSTM ? 4 : 1; }
static int64_t saved_of(int64_t cell) { return cell == GRU || cell == LSTM ? 4 : 1; }
static bool leaky(int64_t cell) { return cell == RATE || cell == VOLTAGE; }

struct Reference {
    const Sequence &q;
    explicit Reference(const Sequence &sequence) : q(sequence) {}
    int64_t H = q.units, I = q.inputs, G = gates_of(q.cell), S = saved_of(q.cell);
    int64_t t(int64_t s) const { return q.reverse ? q.steps - 1 - s : s; }
    int64_t rows(int64_t s) const { return q.sizes ? q.sizes[t(s)] : q.rows; }
    const float *x(int64_t row) const { return q.x + (q.ids ? q.ids[row] : row) * I; }
    int64_t flat(int64_t s, int64_t b) const { return (q.offsets ? q.offsets[t(s)] : t(s) * q.rows) + b; }
    bool starts(int64_t s, int64_t b) const { return q.start && q.start[t(s) * q.rows + b]; }
    double weight(int64_t s, int64_t b) const {
        return !q.weight ? 1 : q.weight[q.weight_rows ? t(s) * q.rows + b : t(s)];
    }
    Doubles gates, outputs, cells, h, c, h_before, c_before, d_gates, dh, dc, dx, d_by_unit, d_start_h, d_start_c, d_w_ih, d_w_hh, d_b_ih, d_b_hh;

    const Doubles &operand() const { return q.cell == VOLTAGE ? c_before : h_before; }

    void run_forward(int64_t N) {
        gates.resize(N * S * H), outputs.resize(N * H), cells.resize(N * H);
        h_before.resize(N * H), c_before.resize(N * H), h.resize(q.rows * H), c.resize(q.rows * H);
        for (int64_t i = 0; i < q.rows * H; ++i) h[i] = q.h0 ? q.h0[i] : 0, c[i] = q.c0 ? q.c0[i] : 0;
        for (int64_t s = 0; s < q.steps; ++s)
            for (int64_t b = 0; b < rows(s); ++b) step(flat(s, b), b, starts(s, b), t(s));
    }

    double noise(int64_t t, int64_t b, int64_t j) const { return q.noisy ? normal(q.key, q.clock + t, b, j) : 0; }

    void step(int64_t row, int64_t b, bool starts, int64_t t) {
        double *g = &gates[row * S * H];
        Doubles sum(G * H);
        for (int64_t i = 0; i < G * H; ++i) {
            g[i] = (q.b_ih ? q.b_ih[i] : 0) + (q.b_hh && !(q.cell == GRU && i >= 2 * H) ? q.b_hh[i] : 0);
            for (int64_t j = 0; j < I; ++j) g[i] += double(q.w_ih[i * I + j]) * x(row)[j];
        }
        for (int64_t j = 0; j < H; ++j) {
            h_before[row * H + j] = starts ? (q.start_h ? q.start_h[j] : 0) : h[b * H + j];
            c_before[row * H + j] = starts ? (q.start_c ? q.start_c[j] : 0) : c[b * H + j];
        }
        for (int64_t i = 0; i < G * H; ++i)
            for (int64_t j = 0; j < H; ++j) sum[i] += q.w_hh[i * H + j] * operand()[row * H + j];
        for (int64_t j = 0; j < H; ++j) {
            double &out = h[b * H + j], &cell = c[b * H + j];
            if (q.cell == RNN) {
                out = g[j] = activated(q.activation, g[j] + sum[j]);
            } else if (leaky(q.cell)) {
                const double a = q.by_unit[j], x = g[j] + sum[j];
                g[j] = q.cell == RATE ? activated(q.activation, x) : x;
                out = (1 - a) * h_before[row * H + j] + a * g[j] + q.by_unit[H + j] * noise(t, b, j);
                if (q.cell == VOLTAGE) cell = activated(q.activation, out);
            } else if (q.cell == GRU) {
                const double r = sigmoid(g[j] + sum[j]), z = sigmoid(g[H + j] + sum[H + j]);
                const double inner = sum[2 * H + j] + (q.b_hh ? q.b_hh[2 * H + j] : 0), n = std::tanh(g[2 * H + j] + r * inner);
                g[j] = r, g[H + j] = z, g[2 * H + j] = n, g[3 * H + j] = inner;
                out = (1 - z) * n + z * h_before[row * H + j];
            } else {
                const double i = sigmoid(g[j] + sum[j]), f = sigmoid(g[H + j] + sum[H + j]);
                const double n = std::tanh(g[2 * H + j] + sum[2 * H + j]), o = sigmoid(g[3 * H + j] + sum[3 * H + j]);
                g[j] = i, g[H + j] = f, g[2 * H + j] = n, g[3 * H + j] = o;
                cell = f * c_before[row * H + j] + i * n, out = o * std::tanh(cell);
            }
            outputs[row * H + j] = out, cells[row * H + j] = cell;
        }
    }

    void run_backward(int64_t N) {
        d_gates.assign(N * S * H, 0), dh.resize(q.rows * H), dc.resize(q.rows * H);
        for (int64_t i = 0; i < q.rows * H; ++i) dh[i] = q.d_hn ? q.d_hn[i] : 0, dc[i] = q.d_cn ? q.d_cn[i] : 0;
        d_by_unit.assign(q.rows * BY_UNIT * H, 0), d_start_h.assign(q.rows * H, 0), d_start_c.assign(q.rows * H, 0);
        for (int64_t s = q.steps - 1; s >= 0; --s)
            for (int64_t b = 0; b < rows(s); ++b) step_back(flat(s, b), b, starts(s, b), weight(s, b), t(s));
        dx.assign(q.distinct * I, 0), d_w_ih.assign(G * H * I, 0), d_w_hh.assign(G * H * H, 0);
        d_b_ih.assign(G * H, 0), d_b_hh.assign(G * H, 0);
        for (int64_t row = 0; row < N; ++row)
            for (int64_t i = 0; i < G * H; ++i) {
                const bool n = q.cell == GRU && i >= 2 * H;  // in d_gates r dn comes before dn
                const double of_state = d_gates[row * S * H + i], of_input = d_gates[row * S * H + i + (n ? H : 0)];
                d_b_ih[i] += of_input, d_b_hh[i] += of_state;
                for (int64_t j = 0; j < I; ++j) {
                    dx[(q.ids ? q.ids[row] : row) * I + j] += of_input * q.w_ih[i * I + j];
                    d_w_ih[i * I + j] += of_input * x(row)[j];
                }
                for (int64_t j = 0; j < H; ++j) d_w_hh[i * H + j] += of_state * operand()[row * H + j];
            }
    }

    void step_back(int64_t row, int64_t b, bool starts, double w, int64_t t) {
        double *g = &gates[row * S * H], *d = &d_gates[row * S * H];
        Doubles past(H);
        for (int64_t j = 0; j < H; ++j) {
            const double out = w * dh[b * H + j] + (q.d_outputs ? q.d_outputs[row * H + j] : 0);
            const double old = h_before[row * H + j], h = outputs[row * H + j];
            if (q.cell == RNN) {
                d[j] = out * slope(q.activation, h);
            } else if (leaky(q.cell)) {
                const double a = q.by_unit[j], r = cells[row * H + j];
                const double of_h = q.cell == VOLTAGE ? out + w * dc[b * H + j] * slope(q.activation, r) : out;
                d[j] = of_h * a * (q.cell == RATE ? slope(q.activation, g[j]) : 1);
                past[j] = (1 - a) * of_h;
                d_by_unit[(b * BY_UNIT) * H + j] += of_h * (g[j] - old);
                d_by_unit[(b * BY_UNIT + 1) * H + j] += of_h * noise(t, b, j);
            } else if (q.cell == GRU) {
                const double r = g[j], z = g[H + j], n = g[2 * H + j], dn = out * (1 - z) * (1 - n * n);
                d[j] = dn * g[3 * H + j] * r * (1 - r), d[H + j] = out * (old - n) * z * (1 - z);
                d[2 * H + j] = dn * r, d[3 * H + j] = dn, past[j] = out * z;
            } else {
                const double i = g[j], f = g[H + j], n = g[2 * H + j], o = g[3 * H + j], y = std::tanh(cells[row * H + j]);
                const double cell = w * dc[b * H + j] + out * o * (1 - y * y);
                d[j] = cell * n * i * (1 - i), d[H + j] = cell * c_before[row * H + j] * f * (1 - f);
                d[2 * H + j] = cell * i * (1 - n * n), d[3 * H + j] = out * y * o * (1 - o);
                dc[b * H + j] = starts ? 0 : cell * f;
            }
        }
        for (int64_t j = 0; j < H; ++j) {
            double sum = 0;
            for (int64_t i = 0; i < G * H; ++i) sum += d[i] * q.w_hh[i * H + j];
            const double of_h = past[j] + (q.cell == VOLTAGE ? 0 : sum);
            if (q.cell == VOLTAGE) dc[b * H + j] = starts ? 0 : sum;
            if (starts) d_start_h[b * H + j] += of_h, d_start_c[b * H + j] += sum;
            dh[b * H + j] = starts ? 0 : of_h;
        }
    }
};

static void sequence(int isa, int64_t cell, int64_t T, int64_t B, int64_t I, int64_t H, int threads) {
    const int64_t G = gates_of(cell), S = saved_of(cell);
    const bool two = cell == LSTM || cell == VOLTAGE;
    std::vector<int64_t> sizes, offsets;
    int64_t N = T * B;
    const bool packed = chance(0.3);
    if (packed) {
        sizes.push_back(B), offsets.push_back(0), N = B;
        for (int64_t t = 1; t < T; ++t) {
            offsets.push_back(N), sizes.push_back(chance(0.5) ? sizes.back() : whole(1, sizes.back()));
            N += sizes.back();
        }
    }
    std::vector<uint8_t> start(size_t(T * B));
    for (uint8_t &x : start) x = chance(0.2);
    std::vector<int64_t> ids(size_t(N), 0);
    const bool looked_up = chance(0.4);
    int64_t refused = chance(0.5) ? -1 : 2 * N + 1;
    const int64_t distinct = looked_up ? whole(1, 2 * N) : N;
    for (int64_t &id : ids) id = whole(0, distinct - 1);
    const bool by_row = chance(0.5);
    Floats weight(by_row ? T * B : T, 2), x(distinct * I, 1), w_ih(G * H * I, 1 / std::sqrt(double(I)));
    Floats w_hh(G * H * H, 1 / std::sqrt(double(H))), b_ih(G * H, 1), b_hh(G * H, 1), gates(N * S * H);
    for (int64_t i = 0; i < weight.n; ++i) weight.at[i] = chance(0.3) ? 0 : weight.at[i];
    Floats cells(N * H), outputs(N * H), h0(B * H, 1), c0(B * H, 1), hn(B * H), cn(B * H), d_outputs(N * H, 1);
    Floats d_hn(B * H, 1), d_cn(B * H, 1), d_gates(N * S * H), d_h0(B * H), d_c0(B * H), d_x(distinct * I);
    Floats d_w_ih(G * H * I), d_w_hh(G * H * H), d_b_ih(G * H), d_b_hh(G * H);
    Floats by_unit(BY_UNIT * H, 0.5), start_h(H, 1), start_c(H, 1), d_by_unit(B * BY_UNIT * H), d_start_h(B * H), d_start_c(B * H);
    for (int64_t i = 0; i < by_unit.n; ++i) by_unit.at[i] += 0.5f;
    for (Floats *sums : {&d_by_unit, &d_start_h, &d_start_c})  // added to
        for (int64_t i = 0; i < sums->n; ++i) sums->at[i] = 0;
    auto maybe = [](float *p) { return chance(0.7) ? p : nullptr; };

    Sequence q{};
    q.cell = cell, q.activation = whole(0, leaky(cell) ? 4 : 2), q.threads = threads, q.steps = T, q.rows = B, q.inputs = I, q.units = H;
    q.total = N, q.distinct = distinct;
    if (looked_up) q.ids = ids.data();
    q.reverse = chance(0.3);
    if (packed) q.sizes = sizes.data(), q.offsets = offsets.data();
    if (!packed && chance(0.5)) q.start = start.data();  // the keywords are for padded sequences, forwards
    if (!packed && chance(0.5)) q.weight = weight.at.get(), q.weight_rows = by_row;
    if (q.start || q.weight) q.reverse = 0;
    q.x = x.at.get(), q.w_ih = w_ih.at.get(), q.w_hh = w_hh.at.get(), q.gates = gates.at.get();
    if (chance(0.7)) q.b_ih = b_ih.at.get(), q.b_hh = b_hh.at.get();
    q.outputs = cell == RNN ? q.gates : outputs.at.get(), q.cells = two ? cells.at.get() : nullptr;
    q.h0 = maybe(h0.at.get()), q.c0 = two ? maybe(c0.at.get()) : nullptr;
    q.hn = hn.at.get(), q.cn = two ? cn.at.get() : nullptr;
    if (leaky(cell)) {
        q.by_unit = by_unit.at.get(), q.noisy = chance(0.7), q.key = whole(0, INT64_MAX), q.clock = whole(0, 1000);
        if (q.start && q.h0 && (!two || q.c0) && chance(0.5)) q.start_h = start_h.at.get(), q.start_c = two ? start_c.at.get() : nullptr;
    }
    Reference want{q};
    want.run_forward(N);
    if (looked_up) {  // refused before anything is read there
        std::swap(ids[size_t(N / 2)], refused);
        if (forward(isa, &q) != 2) abort();
        std::swap(ids[size_t(N / 2)], refused);
    }
    if (forward(isa, &q)) abort();
    const char *name = isa_name(isa);
    compare(name, "gates", gates.at.get(), want.gates);
    compare(name, "outputs", q.outputs, want.outputs);
    compare(name, "hn", q.hn, want.h);
    if (two) compare(name, "cells", q.cells, want.cells), compare(name, "cn", q.cn, want.c);

    if (T <= 8 && B <= 8 && !q.sizes && !q.start) {  // the short way: nothing is kept, the new state over the old one
        Floats y(N * H), h(B * H), c(B * H);
        for (int64_t i = 0; i < B * H; ++i) h.at[i] = q.h0 ? q.h0[i] : 0, c.at[i] = q.c0 ? q.c0[i] : 0;
        Sequence few = q;
        few.outputs = y.at.get(), few.gates = cell == RNN ? few.outputs : nullptr, few.cells = nullptr;
        few.h0 = few.hn = h.at.get();
        if (two) few.c0 = few.cn = c.at.get();
        if (forward(isa, &few)) abort();
        compare(name, "outputs, the short way", few.outputs, want.outputs);
        compare(name, "hn over h0", few.hn, want.h);
        if (two) compare(name, "cn over c0", few.cn, want.c);
    }

    q.hn = q.cn = nullptr;
    q.d_outputs = maybe(d_outputs.at.get()), q.d_hn = maybe(d_hn.at.get()), q.d_gates = maybe(d_gates.at.get());
    q.d_cn = two ? maybe(d_cn.at.get()) : nullptr;
    q.d_h0 = maybe(d_h0.at.get()), q.d_c0 = two ? maybe(d_c0.at.get()) : nullptr;
    q.d_x = maybe(d_x.at.get()), q.d_w_ih = maybe(d_w_ih.at.get()), q.d_w_hh = maybe(d_w_hh.at.get());
    q.d_b_ih = maybe(d_b_ih.at.get()), q.d_b_hh = maybe(d_b_hh.at.get());
    if (leaky(cell) && chance(0.7)) q.d_by_unit = d_by_unit.at.get();
    if (q.start_h && chance(0.7)) q.d_start_h = d_start_h.at.get(), q.d_start_c = two ? d_start_c.at.get() : nullptr;
    want.run_backward(N);
    if (backward(isa, &q)) abort();
    if (q.d_gates) compare(name, "d_gates", q.d_gates, want.d_gates);
    if (q.d_h0) compare(name, "d_h0", q.d_h0, want.dh);
    if (q.d_c0) compare(name, "d_c0", q.d_c0, want.dc);
    if (q.d_by_unit) compare(name, "d_by_unit", q.d_by_unit, want.d_by_unit);
    if (q.d_start_h) compare(name, "d_start_h", q.d_start_h, want.d_start_h);
    if (q.d_start_c) compare(name, "d_start_c", q.d_start_c, want.d_start_c);
    if (q.d_x) compare(name, "d_x", q.d_x, want.dx);
    if (q.d_w_ih) compare(name, "d_w_ih", q.d_w_ih, want.d_w_ih);
    if (q.d_w_hh) compare(name, "d_w_hh", q.d_w_hh, want.d_w_hh);
    if (q.d_b_ih) compare(name, "d_b_ih", q.d_b_ih, want.d_b_ih);
    if (q.d_b_hh) compare(name, "d_b_hh", q.d_b_hh, want.d_b_hh);
}

// The gradients come with the losses, or later: from the norms, or from the scores' cotangents if they are kept.
enum Way { ONCE, NORMS, KEPT };

static void readouts(int isa, int64_t N, int64_t I, int64_t V, int threads) {
    const Way way = Way(whole(ONCE, KEPT));
    const int64_t reduction = whole(EACH, MEAN), some = reduction == EACH ? N : 1;
    Floats x(N * I, 1), w(V * I, 1), b(V, 1), d(some, 1), losses(some), norms(N), d_x(N * I), d_w(V * I), d_b(V), kept(N * V);
    std::vector<int64_t> targets(size_t(N), 0);
    for (int64_t &target : targets) target = chance(0.2) ? -7 : whole(0, V - 1);
    targets.back() = whole(0, V - 1);
    int64_t counted = 0;
    for (const int64_t target : targets) counted += target >= 0;
    Readout r{};
    r.threads = threads, r.rows = N, r.inputs = I, r.classes = V, r.ignored = -7, r.targets = targets.data();
    r.x = x.at.get(), r.w = w.at.get(), r.b = chance(0.5) ? b.at.get() : nullptr, r.reduction = reduction;
    (way == KEPT ? r.kept : r.norms) = (way == KEPT ? kept : norms).at.get();
    Doubles want(N), want_norms(N), p(N * V), dx(N * I), dw(V * I), db(V);
    for (int64_t i = 0; i < N; ++i) {
        double sum = 0;
        for (int64_t v = 0; v < V; ++v) {
            double &z = p[i * V + v] = r.b ? r.b[v] : 0;
            for (int64_t k = 0; k < I; ++k) z += double(r.x[i * I + k]) * r.w[v * I + k];
            sum += std::exp(z);
        }
        want_norms[i] = std::log(sum), want[i] = targets[i] < 0 ? 0 : want_norms[i] - p[i * V + targets[i]];
    }
    const bool ones = way == ONCE || chance(0.3);
    const double divisor = reduction == MEAN ? double(counted) : 1;
    for (int64_t i = 0; i < N; ++i)
        for (int64_t v = 0; v < V; ++v) {
            const double g = targets[i] < 0 ? 0 : (ones ? 1 : d.at[i % some]) / divisor * (std::exp(p[i * V + v] - want_norms[i]) - (v == targets[i]));
            db[v] += g;
            for (int64_t k = 0; k < I; ++k) dx[i * I + k] += g * r.w[v * I + k], dw[v * I + k] += g * r.x[i * I + k];
        }
    auto wanted = [&] {
        if (chance(0.8)) r.d_x = d_x.at.get();
        if (chance(0.8)) r.d_w = d_w.at.get();
        if (r.b && chance(0.8)) r.d_b = d_b.at.get();
    };
    if (reduction != EACH) want = {std::accumulate(want.begin(), want.end(), 0.) / divisor};
    r.losses = losses.at.get();
    if (way == ONCE) wanted();
    std::swap(targets[size_t(N / 2)], targets[0]);
    const int64_t first = std::exchange(targets[0], V);
    if (readout(isa, &r) != 2) abort();
    targets[0] = first;
    std::swap(targets[size_t(N / 2)], targets[0]);
    if (readout(isa, &r)) abort();
    const char *name = isa_name(isa);
    compare(name, "losses", r.losses, want);
    if (way != KEPT) compare(name, "norms", r.norms, want_norms);
    if (way != ONCE) {
        r.losses = nullptr, r.d_losses = ones ? nullptr : d.at.get();
        wanted();
        if (readout(isa, &r)) abort();
    }
    if (r.d_x) compare(name, "d_x of a readout", r.d_x, dx);
    if (r.d_w) compare(name, "d_w of a readout", r.d_w, dw);
    if (r.d_b) compare(name, "d_b of a readout", r.d_b, db);
}

static void influences(int isa, int64_t T, int64_t B, int64_t d, int64_t G, int64_t H, int64_t J, int threads) {
    Floats keep(T * B * d * d * H, 1), factor(T * B * d * G * H, 1), operand(T * B * J, 1), entries(B * d * G * H * J, 1);
    Floats cotangents(B * d * H, 1), sums(G * H * J);
    Influence q{};
    q.threads = threads, q.steps = T, q.rows = B, q.numbers = d, q.groups = G, q.units = H, q.width = J;
    q.entries = entries.at.get(), q.keep = keep.at.get(), q.factor = factor.at.get();
    q.operand = chance(0.7) ? operand.at.get() : nullptr, q.cotangents = cotangents.at.get(), q.sums = sums.at.get();
    const int64_t b = whole(0, B - 1), h = whole(0, H - 1), t = whole(0, T - 1);  // a unit that starts anew
    for (int64_t i = 0; i < d * d; ++i) keep.at[((t * B + b) * d * d + i) * H + h] = 0;
    Doubles e(entries.at.get(), entries.at.get() + entries.n), was(e), want(G * H * J);
    for (int64_t i = 0; i < d * G; ++i) entries.at[((b * d * G + i) * H + h) * J + whole(0, J - 1)] = INFINITY;
    for (int64_t s = 0; s < T; ++s, was = e)
        for (int64_t i = 0; i < entries.n; ++i) {
            const int64_t j = i % J, u = i / J % H, g = i / J / H % G, k = i / J / H / G % d, row = i / J / H / G / d, at = s * B + row;
            e[i] = double(q.factor[((at * d + k) * G + g) * H + u]) * (q.operand ? q.operand[at * J + j] : 1);
            for (int64_t l = 0; l < d; ++l) e[i] += double(q.keep[((at * d + k) * d + l) * H + u]) * was[(((row * d + l) * G + g) * H + u) * J + j];
        }
    if (absorb(isa, &q)) abort();
    compare(isa_name(isa), "entries", q.entries, e);
    for (int64_t k = 0; k < d; ++k) cotangents.at[(b * d + k) * H + h] = 0;
    for (int64_t i = 0; i < entries.n; ++i) {
        const int64_t u = i / J % H, k = i / J / H / G % d, row = i / J / H / G / d;
        want[i % (G * H * J)] += double(q.cotangents[(row * d + k) * H + u]) * q.entries[i];
    }
    for (int64_t i = 0; i < d * G; ++i) entries.at[((b * d * G + i) * H + h) * J + whole(0, J - 1)] = INFINITY;
    if (pull(isa, &q)) abort();
    compare(isa_name(isa), "sums of entries", q.sums, want);
}

int main(int, char **argv) {
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) return printf("%s\n", dlerror()), 2;
    use_openmp = entry<decltype(bptt_use_openmp)>(library, "bptt_use_openmp");
    isa_name = entry<decltype(bptt_isa)>(library, "bptt_isa");
    forward = entry<decltype(bptt_forward)>(library, "bptt_forward");
    backward = entry<decltype(bptt_backward)>(library, "bptt_backward");
    readout = entry<decltype(bptt_readout)>(library, "bptt_readout");
    absorb = entry<decltype(bptt_absorb)>(library, "bptt_absorb");
    pull = entry<decltype(bptt_pull)>(library, "bptt_pull");
    for (int isa = 0; isa_name(isa); ++isa) {
        for (const int threads : {1, 2, 3, 5}) {  // five asked for, three given
            use_openmp(threads == 1 ? nullptr : parallel, number, count);
            given = threads == 5 ? 3 : 64;
            for (const int64_t cell : {RNN, GRU, LSTM, RATE, VOLTAGE}) {
                for (const int64_t H : {1, 2, 7, 15, 16, 17, 31, 33, 64, 67})
                    for (const int64_t B : {1, 2, 5, 9, 13}) sequence(isa, cell, whole(1, 4), B, whole(1, 40), H, threads);
                sequence(isa, cell, 2, 200, 7, 9, threads), sequence(isa, cell, 3, 97, 70, 33, threads);
                sequence(isa, cell, 1, 1, 1, 1, threads), sequence(isa, cell, 1, 1, 3, 129, threads);
                sequence(isa, cell, 1, 1, 600, 5, threads), sequence(isa, cell, 4, 130, 40, 32, threads);
                sequence(isa, cell, 51, 5, 17, 16, threads), sequence(isa, cell, 257, 1, 15, 31, threads);
                for (int i = 0; i < 3; ++i) {  // enough work for threads: rows divided, columns divided, both
                    sequence(isa, cell, 16, 24, 40, 80, threads), sequence(isa, cell, 60, 3, 5, 113, threads);
                    sequence(isa, cell, 40, 17, 9, 64, threads), sequence(isa, cell, 3, 97, 70, 90, threads);
                }
            }
        }
        const std::mt19937 drawn = random_bits;
        for (const int threads : {1, 2, 5}) {
            use_openmp(threads == 1 ? nullptr : parallel, number, count);
            given = threads == 5 ? 3 : 64;
            for (const int64_t V : {1, 3, 17, 96, 1023, 1024, 1025, 2051})
                for (const int64_t N : {1, 5, 8, 9, 70}) readouts(isa, N, whole(1, 40), V, threads);
            for (int i = 0; i < 3; ++i)
                readouts(isa, 600, 33, 1100, threads), readouts(isa, 700, 5, 1000, threads), readouts(isa, 401, 50, 97, threads);
        }
        for (const int threads : {1, 2, 5}) {
            use_openmp(threads == 1 ? nullptr : parallel, number, count);
            given = threads == 5 ? 3 : 64;
            for (const int64_t d : {1, 2})
                for (const int64_t H : {1, 5, 16, 37})
                    for (const int64_t J : {1, 3, 16, 33, 150}) influences(isa, whole(1, 70), whole(1, 3), d, whole(1, 4), H, J, threads);
            influences(isa, 3, 9, 2, 3, 50, 70, threads), influences(isa, 2, 70, 1, 2, 32, 64, threads);
        }
        random_bits = drawn;
        printf("%s: %d checks so far, %d wrong\n", isa_name(isa), checks, failures);
    }
    return failures ? 1 : 0;
}
