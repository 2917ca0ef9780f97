// The kernels of the GPU backend. Those that kernels.py or image_kernels.py has too
// have the same names there. Matrix products are left to cuBLAS.
//
// Every kernel computes for all tasks in one launch. TO(x) and FROM(x) declare one
// array per task, to write or to read: a pointer to the first task's array, and the
// number of elements from one task's to the next (0 if all tasks share it). The other
// parameters are the sizes of one task, as on the CPU.
//
// One thread computes each element of a result, and adds its terms in a fixed order: no
// atomics, no shared memory, no thread that waits for another. So a launch gives the
// same bits every time, and any grid computes the right result, if slowly. Even a
// single thread does, which is how these very lines are tested where there is no GPU.
//
// Compiled once with REAL=float and once with REAL=double.

typedef REAL real;
typedef long long whole;

#define KERNEL extern "C" __global__ void
#define TO(x) real *x, whole x##_step
#define FROM(x) const real *x, whole x##_step

// Grids are two-dimensional: tasks down, the elements of one task across. A thread
// continues with the element, and the task, one whole grid further.
#define EACH_TASK for (whole task = blockIdx.y; task < tasks; task += gridDim.y)
#define EACH(i, n)                                                  \
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n);    \
         i += gridDim.x * blockDim.x)

// --- elementwise ----------------------------------------------------------------------

// In the order of `device_plan.ELEMENTWISE`.
enum Opcode {
    ADD, SUB, MUL, MUL_ADD, ADD_RELU, GATE, SCALE, RELU, EXP, LOG, SIN, COS, TANH,
    RECIPROCAL, RSQRT, COPY, BROADCAST
};

// NaN passes through relu and gate, because no comparison with it is true.
__device__ real relu(real x) { return x <= 0 ? (real)0 : x; }

__device__ real apply(whole opcode, real old, real x, real y)
{
    switch (opcode) {
    case ADD: return x + y;
    case SUB: return x - y;
    case MUL: return x * y;
    case MUL_ADD: return old + x * y;
    case ADD_RELU: return relu(x + y);
    case GATE: return y <= 0 ? (real)0 : x;
    case SCALE: return x * y;
    case RELU: return relu(x);
    case EXP: return exp(x);
    case LOG: return log(x);
    case SIN: return sin(x);
    case COS: return cos(x);
    case TANH: return tanh(x);
    case RECIPROCAL: return 1 / x;
    case RSQRT: return 1 / sqrt(x);
    case COPY: return x;
    default: return y;  // BROADCAST
    }
}

// One operation of a fused group. Element i of its result reads x[i] and the element of
// y that is broadcast to i, y[i / span * inner + i % inner].
struct Operation {
    whole opcode;
    real *out;
    whole out_step;
    const real *x;
    whole x_step;
    const real *y;
    whole y_step;
    whole span, inner;
};

// i % size, without a division where size is a power of two, as it mostly is.
__device__ int rest_of(int i, int size)
{
    return size & (size - 1) ? i % size : i & (size - 1);
}

// A fused group: operations on arrays of n elements, in one launch. One thread does all
// of them for element i, so an operation may read the element that an earlier one
// wrote. Its speed is the number of instructions: steps and numbers of tasks are made
// ints, whose product takes one, and nothing is divided that need not be.
KERNEL elementwise(whole tasks, const Operation *operations, whole count, whole n)
{
    EACH_TASK EACH(i, n) for (int k = 0; k < count; k++) {
        const Operation op = operations[k];
        const int span = op.span, inner = op.inner, t = task;
        int j = i;
        if (inner != n) j = (span == n ? 0 : i / span * inner) + rest_of(i, inner);
        real *out = op.out + (whole)t * (int)op.out_step + i;
        real x = op.x ? op.x[(whole)t * (int)op.x_step + i] : (real)0;
        real y = op.y ? op.y[(whole)t * (int)op.y_step + j] : (real)0;
        *out = apply(op.opcode, op.opcode == MUL_ADD ? *out : (real)0, x, y);
    }
}

// out (n,) = zeros, with x (length,) at `start`.
KERNEL pad(whole tasks, TO(out), FROM(x), whole start, whole length, whole n)
{
    EACH_TASK EACH(i, n) {
        bool inside = start <= i && i < start + length;
        out[task * out_step + i] = inside ? x[task * x_step + i - start] : (real)0;
    }
}

// out (outer, n, m, inner) = x (outer, m, n, inner), two axes exchanged.
KERNEL swap(whole tasks, TO(out), FROM(x), whole outer, whole m, whole n, whole inner)
{
    EACH_TASK EACH(i, outer * n * m * inner) {
        const whole p = i % inner, r = i / inner % m, c = i / inner / m % n;
        const whole o = i / (inner * m * n);
        out[task * out_step + i] = x[task * x_step + ((o * m + r) * n + c) * inner + p];
    }
}

// --- sums over the middle of (outer, middle, inner) -----------------------------------

KERNEL sum(whole tasks, TO(out), FROM(x), whole outer, whole middle, whole inner)
{
    const int size = inner, terms = middle;
    EACH_TASK EACH(i, outer * inner) {
        const real *p = x + task * x_step + (whole)(i / size) * terms * size + i % size;
        real total = 0;
        for (int m = 0; m < terms; m++, p += size) total += *p;
        out[task * out_step + i] = total;
    }
}

KERNEL mul_sum(
    whole tasks, TO(out), FROM(x), FROM(y), whole outer, whole middle, whole inner)
{
    const int size = inner, terms = middle;
    EACH_TASK EACH(i, outer * inner) {
        const whole first = (whole)(i / size) * terms * size + i % size;
        const real *p = x + task * x_step + first, *q = y + task * y_step + first;
        real total = 0;
        for (int m = 0; m < terms; m++, p += size, q += size) total += *p * *q;
        out[task * out_step + i] = total;
    }
}

// Sums over blocks of neighbouring tasks, of arrays of n elements. `terms` is the number
// of tasks; `tasks`, the first parameter of every kernel, is here the number of blocks.
// A second launch, with one block, adds up the sums of the blocks.
KERNEL sum_tasks(whole tasks, TO(out), FROM(x), whole terms, whole n)
{
    EACH_TASK EACH(i, n) {
        real total = 0;
        for (whole t = task * terms / tasks; t < (task + 1) * terms / tasks; t++)
            total += x[t * x_step + i];
        out[task * out_step + i] = total;
    }
}

// --- rows of logits -------------------------------------------------------------------

__device__ real largest_of(const real *x, int n)
{
    real top = x[0];
    for (int i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

KERNEL softmax(whole tasks, TO(out), FROM(x), whole rows, whole n)
{
    EACH_TASK EACH(r, rows) {
        const real *row = x + task * x_step + r * n;
        real *to = out + task * out_step + r * n;
        real top = largest_of(row, n), total = 0;
        for (int i = 0; i < n; i++) total += to[i] = exp(row[i] - top);
        for (int i = 0; i < n; i++) to[i] /= total;
    }
}

KERNEL logsumexp(whole tasks, TO(out), FROM(x), whole rows, whole n)
{
    EACH_TASK EACH(r, rows) {
        const real *row = x + task * x_step + r * n;
        real top = largest_of(row, n), total = 0;
        if (top - top != 0) top = 0;  // it is infinite, or NaN: no inf - inf
        for (int i = 0; i < n; i++) total += exp(row[i] - top);
        out[task * out_step + r] = top + log(total);
    }
}

// --- images (images, height, width, channels) -----------------------------------------

// A convolution is a product of two matrices: of patches and of weights. Tap (u, v) of
// the kernel meets, for the output (row, column), the pixel (row * stride + u - top,
// column * stride + v - left), or padding outside the image.

#define WINDOW                                                                  \
    whole images, whole height, whole width, whole channels, whole rows,        \
        whole columns, whole kernel_height, whole kernel_width, whole stride,   \
        whole top, whole left

// The matrix of patches, (images, rows, columns) by (kernel_height, kernel_width,
// channels): the pixel that each tap meets for each output, 0 for padding.
// A thread copies the pixels of one column of outputs and one tap, from row to row, and
// so finds out once which they are: the divisions took longer than the copying.
KERNEL im2col(whole tasks, TO(out), FROM(x), WINDOW)
{
    const int depth = channels, taps = kernel_width, across = columns, down = rows;
    const int each = (int)kernel_height * taps * depth, line = width * depth;
    EACH_TASK EACH(i, (int)images * across * each) {
        int c = i % depth, rest = i / depth;
        int v = rest % taps; rest /= taps;
        int u = rest % (int)kernel_height; rest /= (int)kernel_height;
        int column = rest % across, n = rest / across;
        int z = column * (int)stride + v - (int)left, y = u - (int)top;
        const real *image = x + task * x_step + n * (int)height * line + z * depth + c;
        real *to = out + task * out_step + n * down * across * each + i % (across * each);
        for (int row = 0; row < down; row++, y += stride, to += across * each)
            *to = 0 <= y && y < height && 0 <= z && z < width ? image[y * line] : (real)0;
    }
}

// The transpose of im2col: each pixel gets the sum of the elements of patches that were
// copied from it, added to what it holds if `accumulate`.
KERNEL col2im(whole tasks, TO(out), FROM(x), WINDOW, whole accumulate)
{
    const int depth = channels, across = width, down = height;
    EACH_TASK EACH(i, images * height * width * channels) {
        int c = i % depth, rest = i / depth;
        int z = rest % across; rest /= across;
        int y = rest % down, n = rest / down;
        const real *patches = x + task * x_step;
        const int step = stride, taps = kernel_width;
        real total = 0;
        // Tap u meets the pixel in row (y + top - u) / stride, if that has no remainder.
        for (int u = (y + (int)top) % step; u < kernel_height; u += step) {
            int row = (y + (int)top - u) / step;
            if (y + (int)top < u || row >= rows) continue;
            for (int v = (z + (int)left) % step; v < taps; v += step) {
                int column = (z + (int)left - v) / step;
                if (z + (int)left < v || column >= columns) continue;
                int output = (n * (int)rows + row) * (int)columns + column;
                total += patches[((output * (int)kernel_height + u) * taps + v) * depth + c];
            }
        }
        real *to = out + task * out_step + i;
        *to = accumulate ? *to + total : total;
    }
}

// The number of the largest element in a window (size, size) that begins at x: of equal
// ones the first, and the first NaN before all numbers. The elements of a window are
// counted row by row. In memory a row is `line` elements further, a pixel `depth`.
__device__ int largest(const real *x, int size, whole line, whole depth)
{
    int best = 0;
    real top = x[0];
    for (int element = 1; element < size * size; element++) {
        real here = x[element / size * line + element % size * depth];
        if (here > top || (here != here && top == top)) {
            top = here;
            best = element;
        }
    }
    return best;
}

#define POOL whole images, whole height, whole width, whole channels, whole window

// The element of z where x is largest, for each window: (images, height / window,
// width / window, channels).
KERNEL max_gather(whole tasks, TO(out), FROM(z), FROM(x), POOL)
{
    const int size = window, depth = channels;
    const int down = height / window, across = width / window;
    EACH_TASK EACH(i, images * down * across * channels) {
        int c = i % depth, rest = i / depth;
        int column = rest % across; rest /= across;
        int row = rest % down, n = rest / down;
        whole corner =
            ((n * height + row * size) * width + column * size) * depth + c;
        int best = largest(x + task * x_step + corner, size, width * depth, depth);
        out[task * out_step + i] =
            z[task * z_step + corner + (best / size * width + best % size) * depth];
    }
}

// z has one element for each window: it is put where x is largest in the window, and
// all other elements of out (images, height, width, channels) are 0.
KERNEL max_scatter(whole tasks, TO(out), FROM(z), FROM(x), POOL)
{
    const int size = window, depth = channels;
    const int down = height / window, across = width / window;
    EACH_TASK EACH(i, images * height * width * channels) {
        int c = i % depth, rest = i / depth;
        int at_x = rest % (int)width; rest /= (int)width;
        int at_y = rest % (int)height, n = rest / (int)height;
        int row = at_y / size, column = at_x / size;
        real value = 0;
        if (row < down && column < across) {
            whole corner =
                ((n * height + row * size) * width + column * size) * depth + c;
            int own = (at_y - row * size) * size + at_x - column * size;
            if (own == largest(x + task * x_step + corner, size, width * depth, depth))
                value = z[task * z_step + ((n * down + row) * across + column) * depth + c];
        }
        out[task * out_step + i] = value;
    }
}

// --- on-device training ---------------------------------------------------------------

// The examples of each task, copied out of a data set of bytes and scaled to 0 .. 1.
// `numbers` says which image an example is, `turns` by how many quarter turns it is
// rotated, counter-clockwise.
KERNEL look_up(
    whole tasks, TO(out), const unsigned char *images, const whole *numbers,
    const whole *turns, whole examples, whole height, whole width, whole channels)
{
    const int depth = channels, across = width, down = height;
    EACH_TASK EACH(i, examples * height * width * channels) {
        int c = i % depth, rest = i / depth;
        int z = rest % across; rest /= across;
        int y = rest % down, from_y = y, from_z = z;
        whole example = task * examples + rest / down;
        switch (turns[example] & 3) {  // only square images are rotated
        case 1: from_y = z; from_z = down - 1 - y; break;
        case 2: from_y = down - 1 - y; from_z = down - 1 - z; break;
        case 3: from_y = down - 1 - z; from_z = y; break;
        }
        whole pixel = ((numbers[example] * height + from_y) * width + from_z) * depth + c;
        out[task * out_step + i] = (real)images[pixel] / 255;
    }
}

// Labels as one-hot rows: a 1 at the label, zeros elsewhere.
KERNEL one_hot(whole tasks, TO(out), const whole *labels, whole examples, whole ways)
{
    EACH_TASK EACH(i, examples * ways)
        out[task * out_step + i] = labels[task * examples + i / ways] == i % ways;
}

// The settings of an optimiser and the state of a training, as `training.py` writes
// them: `step` counts steps, `rate` is the learning rate of one step after Adam's
// correction of bias (which SGD's beta1 = beta2 = 0 leave as it is), `failed` is 1 from
// the first loss or gradient on that is not finite or too large for Adam.
struct Training {
    double scale, clip, learning_rate, beta1, beta2, epsilon;
    double step, rate, failed;
};

__device__ real clipped(real gradient, const Training *training)
{
    real g = gradient * (real)training->scale, most = training->clip;
    return g > most ? most : g < -most ? -most : g;
}

// The step fails if an entry of the gradient is not finite, or if Adam, which alone has
// an epsilon, cannot square it. (x - x is 0 for a finite x, and NaN for any other.)
KERNEL look_at(whole tasks, Training *training, const real *gradient, whole n)
{
    EACH_TASK EACH(i, n) {
        real g = clipped(gradient[i], training), top = training->epsilon > 0 ? g * g : g;
        if (!(gradient[i] - gradient[i] == 0 && top - top == 0)) training->failed = 1;
    }
}

// Begin a step: write its loss to the history, NaN if it failed, and compute its rate.
// Once a step has failed, the parameters do not change any more, so that the host can
// report those at which the loss was not finite.
KERNEL begin_step(
    whole tasks, Training *training, const real *loss, double *history, whole length)
{
    EACH_TASK EACH(i, 1) {
        double step = training->step, mean = (double)loss[0] * training->scale;
        if (!(mean - mean == 0)) training->failed = 1;
        history[(whole)step % length] = training->failed ? nan("") : mean;
        training->step = ++step;
        training->rate = training->learning_rate * sqrt(1 - pow(training->beta2, step)) /
                         (1 - pow(training->beta1, step));
    }
}

KERNEL sgd(
    whole tasks, real *theta, const real *gradient, const Training *training, whole n)
{
    EACH_TASK EACH(i, n) if (!training->failed)
        theta[i] -= clipped(gradient[i], training) * (real)training->rate;
}

// The operations of `optim.Adam` in the same order; a compiler may still contract a
// product and a sum into one rounding. The second moments lie behind the first.
KERNEL adam(
    whole tasks, real *theta, const real *gradient, const Training *training, whole n,
    real *moments)
{
    EACH_TASK EACH(i, n) if (!training->failed) {
        real *first = moments + i, *second = moments + n + i;
        const real beta1 = training->beta1, beta2 = training->beta2;
        const real g = clipped(gradient[i], training);
        *first = *first * beta1 + g * (real)(1 - training->beta1);
        *second = *second * beta2 + g * g * (real)(1 - training->beta2);
        theta[i] -= *first / (sqrt(*second) + (real)training->epsilon) *
                    (real)training->rate;
    }
}
