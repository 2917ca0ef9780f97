// The kernels of the GPU machine; those that kernels.py and image_kernels.py also have
// go by the same names there. Matrix products are the vendor's library's business.
//
// Every kernel serves all tasks in one launch. TO(x) and FROM(x) declare an array of
// each task: a pointer to that of the first, and how many elements lie between one task
// and the next (0 where all tasks share it). What a kernel does for one task is told by
// sizes, as on the CPU.
//
// Each element of a result is made by one thread, which adds up what it needs in a fixed
// order: no atomics, no shared memory, no threads that wait for each other. So a launch
// gives the same bits every time, any grid is right, and one thread alone is a legal
// launch, which is how these very lines are tested where there is no GPU.
//
// Compiled once for REAL=float and once for REAL=double.

typedef REAL real;
typedef long long whole;

#define KERNEL extern "C" __global__ void
#define TO(x) real *x, whole x##_step
#define FROM(x) const real *x, whole x##_step

// Grids are two-dimensional: tasks down, the elements of one task across.
#define EACH_TASK for (whole task = blockIdx.y; task < tasks; task += gridDim.y)
#define EACH(i, n)                                                  \
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n);    \
         i += gridDim.x * blockDim.x)

// --- elementwise ----------------------------------------------------------------------

// In the order of `device_plan.ELEMENTWISE`.
enum Operation {
    ADD, SUB, MUL, MUL_ADD, ADD_RELU, GATE, SCALE, RELU, EXP, LOG, TANH, RECIPROCAL,
    RSQRT, COPY, BROADCAST
};

// NaN passes relu and gate: no comparison with it is true.
__device__ real relu(real x) { return x <= 0 ? (real)0 : x; }

__device__ real apply(whole operation, real old, real x, real y)
{
    switch (operation) {
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
    case TANH: return tanh(x);
    case RECIPROCAL: return 1 / x;
    case RSQRT: return 1 / sqrt(x);
    case COPY: return x;
    default: return y;  // BROADCAST
    }
}

// One operation of a chain. Element i of it reads x[i], and of y the element that is
// broadcast to i: y[i / span * inner + i % inner].
struct Link {
    whole operation;
    real *out;
    whole out_step;
    const real *x;
    whole x_step;
    const real *y;
    whole y_step;
    whole span, inner;
};

// A chain of operations on arrays of n elements. One thread does all of them for an
// element, so what one link writes there the next may read.
KERNEL elementwise(whole tasks, const Link *links, whole count, whole n)
{
    EACH_TASK EACH(i, n) for (int k = 0; k < count; k++) {
        const Link link = links[k];
        const int span = link.span, inner = link.inner;
        real *out = link.out + task * link.out_step + i;
        real x = link.x ? link.x[task * link.x_step + i] : (real)0;
        real y = link.y ? link.y[task * link.y_step + i / span * inner + i % inner]
                        : (real)0;
        *out = apply(link.operation, link.operation == MUL_ADD ? *out : (real)0, x, y);
    }
}

// out = zeros with x, of `length`, at `start`.
KERNEL pad(whole tasks, TO(out), FROM(x), whole start, whole length, whole n)
{
    EACH_TASK EACH(i, n) {
        bool inside = start <= i && i < start + length;
        out[task * out_step + i] = inside ? x[task * x_step + i - start] : (real)0;
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

// The sum over tasks of arrays of n elements, in `blocks` blocks of neighbouring tasks;
// over these blocks, called once more, it is the sum of all. `blocks` stands where other
// kernels have tasks.
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

#define WINDOW                                                                  \
    whole images, whole height, whole width, whole channels, whole rows,        \
        whole columns, whole kernel_height, whole kernel_width, whole stride,   \
        whole top, whole left

// Patches (images, rows, columns; kernel_height, kernel_width, channels): what each tap
// of the kernel meets at each place, 0 outside the image. A convolution is a product of
// this matrix.
KERNEL im2col(whole tasks, TO(out), FROM(x), WINDOW)
{
    const int depth = channels, taps = kernel_width, across = columns, down = rows;
    EACH_TASK EACH(i, images * rows * columns * kernel_height * kernel_width * channels) {
        int c = i % depth, rest = i / depth;
        int v = rest % taps; rest /= taps;
        int u = rest % (int)kernel_height; rest /= (int)kernel_height;
        int column = rest % across; rest /= across;
        int row = rest % down, n = rest / down;
        int y = row * (int)stride + u - (int)top, z = column * (int)stride + v - (int)left;
        bool inside = 0 <= y && y < height && 0 <= z && z < width;
        out[task * out_step + i] =
            inside ? x[task * x_step + ((n * height + y) * width + z) * depth + c]
                   : (real)0;
    }
}

// Its transpose: the sum of all elements of patches that met a pixel, added to what is
// there if `more`.
KERNEL col2im(whole tasks, TO(out), FROM(x), WINDOW, whole more)
{
    const int depth = channels, across = width, down = height;
    EACH_TASK EACH(i, images * height * width * channels) {
        int c = i % depth, rest = i / depth;
        int z = rest % across; rest /= across;
        int y = rest % down, n = rest / down;
        const real *patches = x + task * x_step;
        real total = 0;
        for (int u = 0; u < kernel_height; u++) {
            int row = y + (int)top - u;
            if (row < 0 || row % (int)stride || row / (int)stride >= rows) continue;
            for (int v = 0; v < kernel_width; v++) {
                int column = z + (int)left - v;
                if (column < 0 || column % (int)stride || column / (int)stride >= columns)
                    continue;
                whole place = (n * rows + row / stride) * columns + column / stride;
                total += patches[
                    ((place * kernel_height + u) * kernel_width + v) * depth + c];
            }
        }
        real *to = out + task * out_step + i;
        *to = more ? *to + total : total;
    }
}

// The place in a window (size, size), at x, that holds its first largest element, or its
// first NaN. A row of pixels is `line` elements, a pixel `depth`.
__device__ int largest(const real *x, int size, whole line, whole depth)
{
    int best = 0;
    real top = x[0];
    for (int place = 1; place < size * size; place++) {
        real here = x[place / size * line + place % size * depth];
        if (here > top || (here != here && top == top)) {
            top = here;
            best = place;
        }
    }
    return best;
}

#define POOL whole images, whole height, whole width, whole channels, whole window

// z where x is largest in each window: (images, height / window, width / window, channels).
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
        int place = largest(x + task * x_step + corner, size, width * depth, depth);
        out[task * out_step + i] =
            z[task * z_step + corner + (place / size * width + place % size) * depth];
    }
}

// z of each window put where x is largest in it, 0 elsewhere: (images, height, ...).
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

// --- training that stays on the device ------------------------------------------------

// Examples of a task assembled from a data set of bytes, as 0 to 1: `numbers` says which
// images, `turns` by how many quarters each is turned, against the clock.
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
        switch (turns[example]) {  // images that are turned are square
        case 1: from_y = z; from_z = down - 1 - y; break;
        case 2: from_y = down - 1 - y; from_z = down - 1 - z; break;
        case 3: from_y = down - 1 - z; from_z = y; break;
        }
        whole pixel = ((numbers[example] * height + from_y) * width + from_z) * depth + c;
        out[task * out_step + i] = (real)images[pixel] / 255;
    }
}

// Labels as rows of one 1 and zeros.
KERNEL one_hot(whole tasks, TO(out), const whole *labels, whole examples, whole ways)
{
    EACH_TASK EACH(i, examples * ways)
        out[task * out_step + i] = labels[task * examples + i / ways] == i % ways;
}

// What an optimiser goes by, and how far it has come; `resident.Resident` writes it.
struct Training {
    double scale, clip, learning_rate, beta1, beta2, epsilon;
    double step, rate, failed;
};

// Whether a gradient of n entries has one that is not finite: then the step fails.
KERNEL look_at(whole tasks, Training *training, const real *gradient, whole n)
{
    EACH_TASK EACH(i, n) 
        if (!(gradient[i] - gradient[i] == 0)) training->failed = 1;
}

// Count a step: its loss is noted, NaN if it failed, and its rate made ready. Once a
// step has failed nothing changes any more, so that the parameters can be looked at as
// they were.
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

__device__ real clipped(real gradient, const Training *training)
{
    real g = gradient * (real)training->scale, most = training->clip;
    return g > most ? most : g < -most ? -most : g;
}

KERNEL sgd(
    whole tasks, real *theta, const real *gradient, const Training *training, whole n)
{
    EACH_TASK EACH(i, n) if (!training->failed)
        theta[i] -= clipped(gradient[i], training) * (real)training->rate;
}

// As `optim.Adam`, in its order, though a compiler may round a product and a sum at once;
// both moments lie behind each other.
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
