// Products of a few vectors with the rows of a matrix that are asked for.  A row is one contiguous read; rows that are
// not asked for are never touched.  float32 or bfloat16 weights, sums in float32, rows shared out among threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

namespace {

struct bf16 { uint16_t bits; };

inline float number(float value) { return value; }
inline float number(bf16 value) {
    uint32_t wide = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &wide, 4);
    return result;
}

template <class W> inline float dot(const W* w, const float* x, long n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < n; ++i) sum += number(w[i]) * x[i];
    return sum;
}

// four rows at a time: y is read and written once for them
template <class W> inline void add(const W* const* w, const float* v, float* y, long n, int rows) {
    if (rows == 4) {
        const W *a = w[0], *b = w[1], *c = w[2], *d = w[3];
        const float p = v[0], q = v[1], r = v[2], s = v[3];
#pragma omp simd
        for (long i = 0; i < n; ++i) y[i] += p * number(a[i]) + q * number(b[i]) + r * number(c[i]) + s * number(d[i]);
        return;
    }
    for (int k = 0; k < rows; ++k) {
        const W* a = w[k];
        const float p = v[k];
#pragma omp simd
        for (long i = 0; i < n; ++i) y[i] += p * number(a[i]);
    }
}

// one thread's share of `count` rows
inline void share(long count, long* begin, long* end) {
    const long threads = omp_get_num_threads(), number = omp_get_thread_num();
    *begin = count * number / threads;
    *end = count * (number + 1) / threads;
}

// y (batch, width) += the threads' partial sums (threads, batch, width), each thread its own columns
inline void gather(const float* partial, float* y, long size, long threads) {
    long begin, end;
    share(size, &begin, &end);
    for (long i = begin; i < end; ++i) y[i] = 0;
    for (long t = 0; t < threads; ++t)
        for (long i = begin; i < end; ++i) y[i] += partial[t * size + i];
}

template <class W>
void dots(const W* weight, const int64_t* index, long count, const float* x, float* out, long batch, long width,
          int threads) {
#pragma omp parallel num_threads(threads)
    {
        long begin, end;
        share(count, &begin, &end);
        for (long k = begin; k < end; ++k)
            for (long b = 0; b < batch; ++b) out[b * count + k] = dot(weight + index[k] * width, x + b * width, width);
    }
}

template <class W>
void sums(const W* weight, const int64_t* index, long count, const float* v, long stride, float* y, long batch,
          long width, int threads) {
    std::vector<float> partial(static_cast<size_t>(threads) * batch * width, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        float* own = partial.data() + omp_get_thread_num() * batch * width;
        long begin, end;
        share(count, &begin, &end);
        for (long k = begin; k < end; k += 4) {
            const int rows = static_cast<int>(std::min(4L, end - k));
            const W* w[4];
            for (int j = 0; j < rows; ++j) w[j] = weight + index[k + j] * width;
            for (long b = 0; b < batch; ++b) {
                float values[4];
                for (int j = 0; j < rows; ++j) values[j] = v[b * stride + index[k + j]];
                add(w, values, own + b * width, width, rows);
            }
        }
#pragma omp barrier
        gather(partial.data(), y, batch * width, omp_get_num_threads());
    }
}

// y = sum over k of a[index k] (up[index k] . x + bias[index k]) down[index k]
template <class W>
void gated(const W* up, const float* bias, const W* down, const int64_t* index, long count, const float* a,
           long neurons, const float* x, float* y, long batch, long in, long out, int threads) {
    std::vector<float> partial(static_cast<size_t>(threads) * batch * out, 0.0f);
#pragma omp parallel num_threads(threads)
    {
        float* own = partial.data() + omp_get_thread_num() * batch * out;
        long begin, end;
        share(count, &begin, &end);
        for (long k = begin; k < end; k += 4) {
            const int rows = static_cast<int>(std::min(4L, end - k));
            const W* w[4];
            float values[4 * 64];
            for (int j = 0; j < rows; ++j) {
                const long i = index[k + j];
                w[j] = down + i * out;
                for (long b = 0; b < batch; ++b) {
                    const float gate = a[b * neurons + i];
                    const float h = gate == 0 ? 0 : dot(up + i * in, x + b * in, in) + (bias ? bias[i] : 0);
                    values[b * 4 + j] = gate * h;
                }
            }
            for (long b = 0; b < batch; ++b) add(w, values + b * 4, own + b * out, out, rows);
        }
#pragma omp barrier
        gather(partial.data(), y, batch * out, omp_get_num_threads());
    }
}

}  // namespace

extern "C" {

// Sets entries of a (batch, neurons) below the threshold in size to 0; lists the neurons with any entry left.
// NaN stays, and is listed.
long active(float* a, long batch, long neurons, float threshold, int64_t* index) {
    for (long i = 0; i < batch * neurons; ++i) a[i] = std::fabs(a[i]) < threshold ? 0.0f : a[i];
    long count = 0;
    for (long i = 0; i < neurons; ++i) {
        bool any = false;
        for (long b = 0; b < batch; ++b) any |= a[b * neurons + i] != 0;
        index[count] = i;
        count += any;
    }
    return count;
}

#define FORMS(W, name)                                                                                               \
    void dots_##name(const W* weight, const int64_t* index, long count, const float* x, float* out, long batch,      \
                     long width, int threads) {                                                                      \
        dots(weight, index, count, x, out, batch, width, threads);                                                   \
    }                                                                                                                \
    void sums_##name(const W* weight, const int64_t* index, long count, const float* v, long stride, float* y,       \
                     long batch, long width, int threads) {                                                          \
        sums(weight, index, count, v, stride, y, batch, width, threads);                                             \
    }                                                                                                                \
    void gated_##name(const W* up, const float* bias, const W* down, const int64_t* index, long count,               \
                      const float* a, long neurons, const float* x, float* y, long batch, long in, long out,         \
                      int threads) {                                                                                 \
        gated(up, bias, down, index, count, a, neurons, x, y, batch, in, out, threads);                              \
    }

FORMS(float, f32)
FORMS(bf16, bf16)
}
