// The functions of cuBLAS that cublas.py calls, with the prototypes of its documentation.
// Products are three loops over matrices that are stored column by column.

#include <stddef.h>

#define GEMM(name, real)                                                              \
    int name(                                                                         \
        void *handle, int transa, int transb, int m, int n, int k, const real *alpha, \
        const real *A, int lda, long long strideA, const real *B, int ldb,            \
        long long strideB, const real *beta, real *C, int ldc, long long strideC,     \
        int batchCount)                                                               \
    {                                                                                 \
        if (handle == NULL || lda < (transa ? k : m) || ldb < (transb ? n : k) ||     \
            ldc < m || m < 0 || n < 0 || k < 0 || batchCount < 0)                     \
            return 7; /* CUBLAS_STATUS_INVALID_VALUE */                               \
        for (int t = 0; t < batchCount; t++)                                          \
            for (int i = 0; i < m; i++)                                               \
                for (int j = 0; j < n; j++) {                                         \
                    const real *a = A + t * strideA, *b = B + t * strideB;            \
                    real *c = C + t * strideC + i + (long long)j * ldc, sum = 0;      \
                    for (int p = 0; p < k; p++)                                       \
                        sum += a[transa ? p + (long long)i * lda                      \
                                        : i + (long long)p * lda] *                   \
                               b[transb ? j + (long long)p * ldb                      \
                                        : p + (long long)j * ldb];                    \
                    *c = *beta == 0 ? *alpha * sum : *alpha * sum + *beta * *c;       \
                }                                                                     \
        return 0;                                                                     \
    }

GEMM(cublasSgemmStridedBatched, float)
GEMM(cublasDgemmStridedBatched, double)

static int handles, mode;
static void *stream, *workspace;
static size_t workspace_size;

int cublasCreate_v2(void **handle)
{
    *handle = &handles;
    return 0;
}

int cublasSetStream_v2(void *handle, void *to)
{
    stream = to;
    return handle == NULL;
}

int cublasSetWorkspace_v2(void *handle, void *start, size_t size)
{
    workspace = start;
    workspace_size = size;
    return handle == NULL;
}

int cublasSetMathMode(void *handle, int to)
{
    mode = to;
    return handle == NULL;
}

// The settings, for the tests.
void *stream_set(void) { return stream; }
void *workspace_set(void) { return workspace; }
size_t workspace_size_set(void) { return workspace_size; }
int mode_set(void) { return mode; }
