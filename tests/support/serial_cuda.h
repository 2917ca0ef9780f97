// What kernels.cu needs to be compiled as plain C++: CUDA's words, for one thread at a time
// on a processor. `be_thread` says which thread of which grid the next call runs.
// The compiler's own functions, since reading <cmath> would take half of the time.
#define FUNCTION(name) \
    static inline float name(float x) { return __builtin_##name##f(x); } \
    static inline double name(double x) { return __builtin_##name(x); }
FUNCTION(exp)
FUNCTION(log)
FUNCTION(sin)
FUNCTION(cos)
FUNCTION(sqrt)
FUNCTION(tanh)
static inline double pow(double x, double y) { return __builtin_pow(x, y); }
#define nan __builtin_nan

#define __global__
#define __device__ static

struct Three {
    unsigned x, y;
};
static Three blockIdx, threadIdx, blockDim, gridDim;

extern "C" void be_thread(
    unsigned block_x, unsigned block_y, unsigned thread, unsigned grid_x,
    unsigned grid_y, unsigned threads)
{
    blockIdx = {block_x, block_y};
    threadIdx = {thread, 0};
    blockDim = {threads, 1};
    gridDim = {grid_x, grid_y};
}
