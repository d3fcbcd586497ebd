/* A stand-in for libcublasLt: the functions that ops/kernels/cuda/cublaslt.py calls, computed on the host.

It does what the descriptors say, as cublasLt.h describes them, so a wrong leading dimension, transposition, batch
stride or epilogue in Python gives a wrong result, and what the library refuses is refused: attributes of another size,
missing pointers, combinations of types that are not in NVIDIA's table, shapes that do not fit, an algorithm chosen for
other descriptors, memory less aligned than was promised, memory outside of all arrays, too small a workspace.
fake_reason() says what it was.

The heuristic has several answers, algorithms that round differently.

Where sums may be made in the result's type (the reduction scheme OUTPUT_TYPE) it does so, in 16 bits, and it rounds the
factors of FAST_TF32: what a caller asks for shows in the bits of the result.

With -DCUBLASLT_HEADER it is compiled against NVIDIA's header: signatures and values are then checked by the compiler.
*/
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_INITIALIZED = 1, INVALID = 7, UNSUPPORTED = 15 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14, C32F = 68, CTF32 = 77 };
enum { BIAS = 4, GELU_AUX = 160, GELU_AUX_BIAS = 164, DGELU = 192, DEFAULT = 1 };
enum { COMPUTE_TYPE = 2, OUTPUT_TYPE = 4 };
enum { ANSWERS = 5, BROKEN_ANSWER = 3 }; /* of the heuristic: how many there are, and which one cannot be used */

#ifdef CUBLASLT_HEADER
#include <cublasLt.h>
typedef cublasLtMatmulDescAttributes_t desc_attribute;
typedef cublasLtMatrixLayoutAttribute_t layout_attribute;
typedef cublasLtMatmulPreferenceAttributes_t preference_attribute;
#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)
SAME(NOT_INITIALIZED, CUBLAS_STATUS_NOT_INITIALIZED);
SAME(INVALID, CUBLAS_STATUS_INVALID_VALUE);
SAME(UNSUPPORTED, CUBLAS_STATUS_NOT_SUPPORTED);
SAME(R_32F, CUDA_R_32F);
SAME(R_16F, CUDA_R_16F);
SAME(R_16BF, CUDA_R_16BF);
SAME(C32F, CUBLAS_COMPUTE_32F);
SAME(CTF32, CUBLAS_COMPUTE_32F_FAST_TF32);
SAME(DEFAULT, CUBLASLT_EPILOGUE_DEFAULT);
SAME(BIAS, CUBLASLT_EPILOGUE_BIAS);
SAME(GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX);
SAME(GELU_AUX_BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS);
SAME(DGELU, CUBLASLT_EPILOGUE_DGELU);
SAME(COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
SAME(OUTPUT_TYPE, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE);
SAME(3, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(4, CUBLASLT_MATMUL_DESC_TRANSB);
SAME(7, CUBLASLT_MATMUL_DESC_EPILOGUE);
SAME(8, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
SAME(11, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER);
SAME(12, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD);
SAME(26, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
SAME(5, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT);
SAME(6, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
SAME(1, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(3, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(5, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(8, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
#else
typedef int cublasStatus_t, cudaDataType, cudaDataType_t, cublasComputeType_t;
typedef int desc_attribute, layout_attribute, preference_attribute;
typedef void *cublasLtHandle_t, *cublasLtMatmulDesc_t, *cublasLtMatrixLayout_t, *cublasLtMatmulPreference_t;
typedef void *cudaStream_t;
typedef struct { uint64_t data[8]; } cublasLtMatmulAlgo_t;
typedef struct {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
} cublasLtMatmulHeuristicResult_t;
#endif

enum { HANDLE = 0x48414e44, DESC = 0x44455343, LAYOUT = 0x4c41594f, PREFERENCE = 0x50524546 };
typedef struct { int magic; } Handle;
typedef struct {
    int magic, compute, scale, bias_type, transposed[2];
    unsigned epilogue;
    char *bias, *aux;
    int64_t aux_ld;
} Desc;
typedef struct { int magic, type, batch; uint64_t rows, cols; int64_t ld, stride; } Layout;
typedef struct { int magic; uint64_t workspace; unsigned reductions, alignment[4]; } Preference;

static const char *reason = "";
static int heuristics, products, alive, refuse_bias, last_algorithm, refuse_algorithm = -1;
static void *last_stream;
#define REFUSE(status, why) do { reason = why; return (cublasStatus_t)(status); } while (0)

/* The memory of the arrays there are, if fake_watch was told of any: nothing else is read or written. */
static struct { uintptr_t start, end; } *watched;
static size_t watched_count, watched_room;
static pthread_mutex_t watching = PTHREAD_MUTEX_INITIALIZER;      /* a call runs without Python's lock */

void fake_watch(uintptr_t start, size_t size) {
    pthread_mutex_lock(&watching);
    if (watched_count == watched_room) {
        watched_room = 2 * watched_room + 64;
        watched = realloc(watched, watched_room * sizeof(*watched));
    }
    watched[watched_count].start = start;
    watched[watched_count++].end = start + size;
    pthread_mutex_unlock(&watching);
}

void fake_forget(uintptr_t start) {
    pthread_mutex_lock(&watching);
    for (size_t i = watched_count; i-- > 0;)
        if (watched[i].start == start) {
            watched[i] = watched[--watched_count];
            break;
        }
    pthread_mutex_unlock(&watching);
}

static int outside(const void *memory, int64_t first, int64_t count, int itemsize) {
    uintptr_t start = (uintptr_t)memory + first * itemsize, end = start + count * itemsize;
    pthread_mutex_lock(&watching);
    int inside = watched_count == 0;
    for (size_t i = 0; i < watched_count && !inside; i++) inside = start >= watched[i].start && end <= watched[i].end;
    pthread_mutex_unlock(&watching);
    return !inside;
}

const char *fake_reason(void) { return reason; }
int fake_heuristics(void) { return heuristics; }
int fake_products(void) { return products; }
int fake_alive(void) { return alive; }
int fake_last_algorithm(void) { return last_algorithm; }   /* which answer of the heuristic, from 0 */
void fake_refuse_algorithm(int number) { refuse_algorithm = number; }
void *fake_last_stream(void) { return last_stream; }
void fake_refuse_bias(int how) { refuse_bias = how; } /* 1: by a status, 2: by no answer, 3: by the answer's state */

const char *cublasLtGetStatusName(cublasStatus_t status) {
    int code = status;
    return code == INVALID ? "CUBLAS_STATUS_INVALID_VALUE" : code == UNSUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED"
         : code == NOT_INITIALIZED ? "CUBLAS_STATUS_NOT_INITIALIZED" : code == OK ? "CUBLAS_STATUS_SUCCESS" : "?";
}

size_t cublasLtGetVersion(void) { return 130102; }

static void *made(int magic, size_t size) {
    int *object = calloc(1, size);
    *object = magic;
    alive += magic != HANDLE;
    return object;
}

static int is(const void *object, int magic) { return object && *(const int *)object == magic; }

static cublasStatus_t destroy(void *object, int magic) {
    if (!is(object, magic)) REFUSE(INVALID, "destroy: not a handle of this kind");
    *(int *)object = 0;
    free(object);
    alive--;
    return (cublasStatus_t)OK;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = made(HANDLE, sizeof(Handle));
    return (cublasStatus_t)OK;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale) {
    Desc *d = made(DESC, sizeof(Desc));
    d->compute = compute, d->scale = scale, d->epilogue = DEFAULT, d->bias_type = -1;
    *desc = (cublasLtMatmulDesc_t)d;
    return (cublasStatus_t)OK;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
    Layout *l = made(LAYOUT, sizeof(Layout));
    l->type = type, l->rows = rows, l->cols = cols, l->ld = ld, l->batch = 1;
    *layout = (cublasLtMatrixLayout_t)l;
    return (cublasStatus_t)OK;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    Preference *p = made(PREFERENCE, sizeof(Preference));
    p->reductions = 7;
    for (int i = 0; i < 4; i++) p->alignment[i] = 256;
    *preference = (cublasLtMatmulPreference_t)p;
    return (cublasStatus_t)OK;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return destroy(desc, DESC); }
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return destroy(layout, LAYOUT); }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { return destroy(p, PREFERENCE); }

/* Where an attribute is kept, and how large it is there. */
#define FIELD(number, field) if ((int)attribute == number) { \
    if (size != sizeof(field)) REFUSE(INVALID, "attribute of another size"); \
    memcpy(&(field), value, size); \
    return (cublasStatus_t)OK; }

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, desc_attribute attribute, const void *value,
                                              size_t size) {
    Desc *d = (Desc *)desc;
    if (!is(d, DESC) || !value) REFUSE(INVALID, "attribute of no operation");
    FIELD(3, d->transposed[0]) FIELD(4, d->transposed[1]) FIELD(7, d->epilogue) FIELD(8, d->bias) FIELD(11, d->aux)
    FIELD(12, d->aux_ld) FIELD(26, d->bias_type)
    REFUSE(INVALID, "unknown attribute of an operation");
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, layout_attribute attribute,
                                                const void *value, size_t size) {
    Layout *l = (Layout *)layout;
    if (!is(l, LAYOUT) || !value) REFUSE(INVALID, "attribute of no layout");
    FIELD(5, l->batch) FIELD(6, l->stride)
    REFUSE(INVALID, "unknown attribute of a layout");
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    preference_attribute attribute, const void *value, size_t size) {
    Preference *p = (Preference *)preference;
    if (!is(p, PREFERENCE) || !value) REFUSE(INVALID, "attribute of no preference");
    FIELD(1, p->workspace) FIELD(3, p->reductions) FIELD(5, p->alignment[0]) FIELD(6, p->alignment[1])
    FIELD(7, p->alignment[2]) FIELD(8, p->alignment[3])
    REFUSE(INVALID, "unknown attribute of a preference");
}

/* NVIDIA's table of what cublasLtMatmul supports, for the types used here; bias and aux have the result's type. */
static cublasStatus_t check(const Desc *d, const Layout *a, const Layout *b, const Layout *c, const Layout *out) {
    if (!is(d, DESC) || !is(a, LAYOUT) || !is(b, LAYOUT) || !is(c, LAYOUT) || !is(out, LAYOUT))
        REFUSE(INVALID, "not a descriptor");
    if (d->scale != R_32F) REFUSE(UNSUPPORTED, "the scale type of float32 sums is float32");
    if (a->type != b->type || c->type != out->type) REFUSE(UNSUPPORTED, "types differ");
    int half = a->type == R_16F || a->type == R_16BF;
    if (d->compute == CTF32 ? a->type != R_32F : d->compute != C32F) REFUSE(UNSUPPORTED, "compute type");
    if (!(half || a->type == R_32F) || (out->type != R_32F && !(half && out->type == a->type)))
        REFUSE(UNSUPPORTED, "type of the result");
    const Layout *all[] = {a, b, c, out};
    for (int i = 0; i < 4; i++) {
        if (!all[i]->rows || !all[i]->cols) REFUSE(INVALID, "an empty matrix");
        if (all[i]->ld < (int64_t)all[i]->rows) REFUSE(INVALID, "leading dimension smaller than rows");
        if (all[i]->batch > 1 && all[i]->stride < 0) REFUSE(INVALID, "a negative batch stride: nowhere documented");
        if (all[i]->batch < 1 || all[i]->batch != out->batch) REFUSE(INVALID, "batch counts differ");
    }
    if (out->batch > 1 && !out->stride) REFUSE(INVALID, "results on top of each other");
    for (int i = 0; i < 2; i++) if (d->transposed[i] & ~1) REFUSE(INVALID, "operation");
    uint64_t m = d->transposed[0] ? a->cols : a->rows, k = d->transposed[0] ? a->rows : a->cols;
    uint64_t k2 = d->transposed[1] ? b->cols : b->rows, n = d->transposed[1] ? b->rows : b->cols;
    if (k != k2 || m != out->rows || n != out->cols || m != c->rows || n != c->cols) REFUSE(INVALID, "shapes");
    unsigned e = d->epilogue;
    if (e != DEFAULT && e != BIAS && e != GELU_AUX && e != GELU_AUX_BIAS && e != DGELU) REFUSE(INVALID, "epilogue");
    if (e == BIAS || e == GELU_AUX_BIAS) {
        if (!d->bias) REFUSE(INVALID, "no bias");
        if (d->bias_type != -1 && d->bias_type != out->type) REFUSE(UNSUPPORTED, "type of the bias");
        if (refuse_bias == 1) REFUSE(UNSUPPORTED, "as asked for");
    }
    if (e >= GELU_AUX && (!d->aux || d->aux_ld % 8 || d->aux_ld < (int64_t)out->rows)) REFUSE(INVALID, "aux matrix");
    return (cublasStatus_t)OK;
}

/* A number for what an algorithm was chosen for. */
static uint64_t fingerprint(const Desc *d, const Layout *const *layouts) {
    uint64_t h = 1469598103934665603u + d->compute + 131 * d->epilogue + 7 * d->transposed[0] + 3 * d->transposed[1];
    for (int i = 0; i < 4; i++) {
        const Layout *l = layouts[i];
        uint64_t words[] = {l->type, l->batch, l->rows, l->cols, l->ld, l->batch > 1 ? l->stride : 0};
        for (int j = 0; j < 6; j++) h = (h ^ words[j]) * 1099511628211u;
    }
    return h;
}

static uint64_t alignment_of(const void *p) {
    uint64_t address = (uint64_t)p, largest = address & -address;
    return largest > 256 ? 256 : largest;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *count) {
    const Desc *d = (Desc *)desc;
    const Layout *layouts[] = {(Layout *)a, (Layout *)b, (Layout *)c, (Layout *)out};
    const Preference *p = (Preference *)preference;
    heuristics++;
    if (!is(handle, HANDLE)) REFUSE(NOT_INITIALIZED, "no handle");
    if (!is(p, PREFERENCE) || wanted < 1 || !results || !count) REFUSE(INVALID, "heuristic");
    cublasStatus_t status = check(d, layouts[0], layouts[1], layouts[2], layouts[3]);
    if (status) return status;
    memset(results, 0, wanted * sizeof(*results));
    uint64_t k = d->transposed[0] ? layouts[0]->rows : layouts[0]->cols;
    int in_output_type = k >= 64 && (p->reductions & OUTPUT_TYPE);
    int has_bias = d->epilogue == BIAS || d->epilogue == GELU_AUX_BIAS;
    uint64_t parts = 8 * layouts[3]->rows * layouts[3]->cols * layouts[3]->batch;
    uint64_t workspace = k >= 64 && (p->reductions & COMPUTE_TYPE) && parts <= p->workspace ? parts : 0;
    for (int number = 0; number < wanted && number < ANSWERS; number++) {
        uint64_t *data = results[number].algo.data;
        data[0] = fingerprint(d, layouts);
        for (int i = 0; i < 4; i++) data[1 + i] = p->alignment[i];
        data[5] = has_bias ? alignment_of(d->bias) : 0;
        data[6] = d->epilogue >= GELU_AUX ? alignment_of(d->aux) : 0;
        data[7] = workspace << 8 | number << 1 | in_output_type;
        results[number].workspaceSize = workspace;
        results[number].wavesCount = 1;
        if ((refuse_bias == 3 && has_bias) || number == BROKEN_ANSWER)
            results[number].state = (cublasStatus_t)UNSUPPORTED;
        *count = number + 1;
    }
    if (refuse_bias == 2 && has_bias) *count = 0;
    return (cublasStatus_t)OK;
}

/* Is this an algorithm for these descriptors, and how much workspace does it need? */
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                       const cublasLtMatmulAlgo_t *algorithm, cublasLtMatmulHeuristicResult_t *result) {
    const Desc *d = (Desc *)desc;
    const Layout *layouts[] = {(Layout *)a, (Layout *)b, (Layout *)c, (Layout *)out};
    if (!is(handle, HANDLE)) REFUSE(NOT_INITIALIZED, "no handle");
    if (!algorithm || !result) REFUSE(INVALID, "a missing pointer");
    cublasStatus_t status = check(d, layouts[0], layouts[1], layouts[2], layouts[3]);
    if (status) return status;
    if (algorithm->data[0] != fingerprint(d, layouts) || (algorithm->data[7] >> 1 & 127) >= ANSWERS)
        REFUSE(INVALID, "the algorithm is for another product");
    result->workspaceSize = algorithm->data[7] >> 8;
    return (cublasStatus_t)OK;
}

/* -- numbers -- */

static float load(const char *base, int type, int64_t i) {
    if (type == R_32F) return ((const float *)base)[i];
    if (type == R_16F) return ((const _Float16 *)base)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)base)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static float rounded_bits(float value, int cut) { /* to nearest, ties to even, without the last `cut` bits */
    uint32_t bits;
    if (!isfinite(value)) return value;
    memcpy(&bits, &value, 4);
    bits += (1u << (cut - 1)) - 1 + (bits >> cut & 1);
    bits &= ~((1u << cut) - 1);
    memcpy(&value, &bits, 4);
    return value;
}

static void store(char *base, int type, int64_t i, float value) {
    if (type == R_32F) ((float *)base)[i] = value;
    else if (type == R_16F) ((_Float16 *)base)[i] = (_Float16)value;
    else {
        uint32_t bits;
        value = rounded_bits(value, 16);
        memcpy(&bits, &value, 4);
        ((uint16_t *)base)[i] = bits >> 16;
    }
}

static float as_type(int type, float value) {
    char memory[4];
    store(memory, type, 0, value);
    return load(memory, type, 0);
}

static double gelu_slope(double x, int slope) { /* gelu(x), or its derivative: the tanh form */
    double s = sqrt(2 / M_PI), t = tanh(s * (x + 0.044715 * x * x * x));
    return slope ? 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * s * (1 + 3 * 0.044715 * x * x) : 0.5 * x * (1 + t);
}

/* op(matrix) of one batch, (rows, cols) by rows, as double. */
static double *unpacked(const char *base, const Layout *l, int batch, int transposed, int tf32, int by_columns) {
    double *values = malloc(sizeof(double) * l->rows * l->cols);
    int flip = transposed != by_columns;
    for (uint64_t j = 0; j < l->cols; j++)
        for (uint64_t i = 0; i < l->rows; i++) {
            float value = load(base, l->type, batch * l->stride + (int64_t)j * l->ld + (int64_t)i);
            values[flip ? j * l->rows + i : i * l->cols + j] = tf32 ? rounded_bits(value, 13) : value;
        }
    return values;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *out,
                              cublasLtMatrixLayout_t out_layout, const cublasLtMatmulAlgo_t *algorithm,
                              void *workspace, size_t workspace_size, cudaStream_t stream) {
    const Desc *d = (Desc *)desc;
    const Layout *layouts[] = {(Layout *)a_layout, (Layout *)b_layout, (Layout *)c_layout, (Layout *)out_layout};
    const Layout *la = layouts[0], *lb = layouts[1], *lc = layouts[2], *lo = layouts[3];
    const void *pointers[] = {a, b, c, out};
    products++;
    last_stream = (void *)stream;
    if (!is(handle, HANDLE)) REFUSE(NOT_INITIALIZED, "no handle");
    cublasStatus_t status = check(d, la, lb, lc, lo);
    if (status) return status;
    if (!alpha || !beta || !a || !b || !c || !out || !algorithm) REFUSE(INVALID, "a missing pointer");
    if (c == out && lc->ld != lo->ld) REFUSE(INVALID, "C and D differ in place");
    if (algorithm->data[0] != fingerprint(d, layouts)) REFUSE(INVALID, "the algorithm is for another product");
    for (int i = 0; i < 4; i++) {
        uint64_t distance = layouts[i]->batch > 1 ? layouts[i]->stride * (layouts[i]->type == R_32F ? 4 : 2) : 0;
        if (((uint64_t)pointers[i] | distance) % algorithm->data[1 + i]) REFUSE(INVALID, "less aligned than promised");
    }
    if (algorithm->data[5] > alignment_of(d->bias) || algorithm->data[6] > alignment_of(d->aux))
        REFUSE(INVALID, "bias or aux less aligned than promised");
    int itemsize = lo->type == R_32F ? 4 : 2, has_bias = d->epilogue == BIAS || d->epilogue == GELU_AUX_BIAS;
    for (int i = 0; i < 4 * lo->batch; i++) {
        const Layout *l = layouts[i % 4];
        int64_t count = (int64_t)(l->cols - 1) * l->ld + l->rows;
        if (outside(pointers[i % 4], i / 4 * l->stride, count, l->type == R_32F ? 4 : 2))
            REFUSE(INVALID, "outside of the arrays");
    }
    if (has_bias && outside(d->bias, 0, lo->rows, itemsize)) REFUSE(INVALID, "bias outside of the arrays");
    if (d->epilogue >= GELU_AUX && outside(d->aux, 0, (int64_t)(lo->cols - 1) * d->aux_ld + lo->rows, itemsize))
        REFUSE(INVALID, "aux outside of the arrays");
    size_t needed = algorithm->data[7] >> 8;
    int number = algorithm->data[7] >> 1 & 127, part_length = 16 + number;
    last_algorithm = number;
    if (number == refuse_algorithm) REFUSE(UNSUPPORTED, "as asked for");
    if (needed && (!workspace || workspace_size < needed)) REFUSE(INVALID, "workspace too small");
    if (outside(workspace, 0, workspace_size, 1)) REFUSE(INVALID, "workspace outside of the arrays");
    memset(workspace, 0xee, needed);
    int in_output_type = algorithm->data[7] & 1, tf32 = d->compute == CTF32;
    float scale = *(const float *)alpha, share = *(const float *)beta;
    int64_t m = lo->rows, n = lo->cols, k = d->transposed[0] ? la->rows : la->cols;
    for (int batch = 0; batch < lo->batch; batch++) {
        double *left = unpacked(a, la, batch, d->transposed[0], tf32, 0);   /* (m, k) */
        double *right = unpacked(b, lb, batch, d->transposed[1], tf32, 1);  /* (n, k) */
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < m; i++) {
                double sum = 0, part = 0;
                for (int64_t l = 0; l < k; l++) {
                    part += left[i * k + l] * right[j * k + l];
                    if (l % part_length == part_length - 1 || l == k - 1) {
                        sum = in_output_type ? as_type(lo->type, sum + as_type(lo->type, part)) : sum + part, part = 0;
                        if (number) sum = (float)sum; /* so that each algorithm has bits of its own */
                    }
                }
                int64_t at = batch * lo->stride + j * lo->ld + i;
                double value = scale * sum;
                if (share != 0) value += share * (double)load(c, lc->type, batch * lc->stride + j * lc->ld + i);
                if (has_bias) value += load(d->bias, lo->type, i);
                if (d->epilogue == GELU_AUX || d->epilogue == GELU_AUX_BIAS) {
                    store(d->aux, lo->type, j * d->aux_ld + i, value);
                    value = gelu_slope(value, 0);
                }
                if (d->epilogue == DGELU) value *= gelu_slope(load(d->aux, lo->type, j * d->aux_ld + i), 1);
                store(out, lo->type, at, value);
            }
        free(left);
        free(right);
    }
    return (cublasStatus_t)OK;
}
