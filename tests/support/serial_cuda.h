// What kernels.cu needs to be compiled as plain C++: CUDA's words, for one thread at a time
// on a processor. `be_thread` says which thread of which grid the next call runs.
#include <cmath>

using std::exp;
using std::log;
using std::nan;
using std::pow;
using std::sqrt;
using std::tanh;

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
