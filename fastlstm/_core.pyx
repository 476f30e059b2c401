# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, freethreading_compatible=False
"""The Cython edge: buffers in, one call of the C core, exceptions out. Arguments come validated from `_check`; only
`StreamCore.step` and `PoolCore.step` check their arrays themselves, because that path can afford nothing else."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, strcmp

import numpy as np

cimport numpy as cnp

cnp.import_array()

cdef extern from "fastlstm.h" nogil:
    ctypedef enum fl_status:
        FL_OK
        FL_BAD_ARGUMENT
        FL_NO_MEMORY
        FL_BUSY
    ctypedef enum fl_cell_kind:
        FL_LSTM
        FL_GRU
        FL_RNN
        FL_GATED_RNN
    ctypedef enum fl_dtype:
        FL_FLOAT32
        FL_FLOAT64
    ctypedef enum fl_weight_type:
        FL_FULL
        FL_BFLOAT16
        FL_INT8
    ctypedef struct fl_activation:
        int32_t kind
        double alpha, beta
    ctypedef struct fl_config:
        size_t size
        int32_t dtype
        int64_t proj_size, num_layers
        int32_t bidirectional, reverse, bias, peepholes, forget_gate, coupled_gates, reset_after, own_activations
        fl_activation activations[3]
        double clip
        int32_t weight_type, activation_bits
    ctypedef struct fl_array:
        const void *data
        int64_t count
    ctypedef struct fl_weights:
        size_t size
        fl_array weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_peephole, scale_ih, scale_hh, scale_hr
    ctypedef struct fl_sequence:
        size_t size
        int64_t T, B
        const void *x
        int64_t x_stride_t, x_stride_b
        void *y
        int64_t y_stride_t, y_stride_b
        const int64_t *lengths
        const void *h0
        const void *c0
        void *h_n
        void *c_n
    ctypedef struct fl_gradient:
        void *data
        int64_t count
    ctypedef struct fl_weight_gradients:
        fl_gradient weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_peephole
    ctypedef struct fl_gradients:
        size_t size
        const void *dy
        int64_t dy_stride_t, dy_stride_b
        const void *dh_n
        const void *dc_n
        void *dx
        int64_t dx_stride_t, dx_stride_b
        void *dh0
        void *dc0
        fl_weight_gradients weights[2]
    ctypedef struct fl_layer:
        pass
    ctypedef struct fl_tape:
        pass
    ctypedef struct fl_stream:
        pass
    const char *fl_last_error()
    const char *fl_version()
    void fl_config_init(fl_config *, fl_cell_kind, int64_t, int64_t)
    fl_status fl_create(const fl_config *, fl_layer **)
    void fl_free(fl_layer *)
    fl_status fl_set_weights(fl_layer *, const fl_weights *, int64_t)
    fl_status fl_to_bfloat16(const float *, int64_t, uint16_t *)
    fl_status fl_to_int8(const float *, int64_t, int64_t, int8_t *, float *)
    fl_status fl_forward(const fl_layer *, const fl_sequence *)
    double fl_estimate_us(const fl_layer *, int64_t, int64_t)
    fl_status fl_record(const fl_layer *, int64_t, const fl_sequence *, int64_t, fl_tape **)
    fl_status fl_backward(fl_tape *, const fl_gradients *)
    int64_t fl_tape_bytes(const fl_tape *)
    void fl_tape_free(fl_tape *)
    fl_status fl_stream_create(const fl_layer *, int64_t, const void *, const void *, fl_stream **)
    void fl_stream_free(fl_stream *)
    fl_status fl_stream_step(fl_stream *, const void *, void *)
    fl_status fl_stream_get_state(fl_stream *, void *, void *)
    fl_status fl_stream_set_state(fl_stream *, const void *, const void *)
    fl_status fl_stream_reset(fl_stream *, const int64_t *, int64_t)
    fl_status fl_stream_copy(fl_stream *, fl_stream **)
    fl_status fl_set_num_threads(int64_t)
    int64_t fl_get_num_threads()
    fl_status fl_set_spin_us(double)
    const char *fl_isa()
    const char *fl_isa_at(int64_t)
    const char *fl_integer_isa()
    const char *fl_integer_isa_at(int64_t)
    const char *fl_cpu_features()

    fl_status fl_activate(fl_dtype, const fl_activation *, int64_t, const void *, void *)
    fl_status fl_activate_backward(fl_dtype, const fl_activation *, int64_t, const void *, const void *, void *)

cdef extern from "kernels/kernels.h" nogil:
    ctypedef int64_t fl_roof_fn(const void *, int64_t)
    ctypedef void fl_map_fn(const void *, const void *, void *, int64_t)
    ctypedef struct fl_kernels:
        const char *isa
        int32_t lanes
        fl_roof_fn *roof_fma
        fl_roof_fn *roof_chain
        fl_roof_fn *roof_read
    ctypedef struct fl_kernel_info:
        const char *op
        const char *type
        const char *doc
        size_t offset
        bint f64
        bint integer
    const fl_kernel_info *fl_kernel_at(int64_t)
    double fl_kernel_bound(const char *, fl_dtype)

cdef extern from "internal.h" nogil:
    ctypedef enum fl_split:
        FL_SPLIT_AUTO
        FL_SPLIT_NONE
        FL_SPLIT_BATCH
        FL_SPLIT_UNITS
    const fl_kernels *fl_kernels_of(fl_dtype)
    const fl_kernels *fl_kernels_named(const char *, fl_dtype)
    void fl_force_split(fl_split)
    fl_split fl_last_split()
    double fl_os_now_us()

cdef extern from "Python.h":
    void *PyCapsule_GetPointer(object, const char *) except NULL
    bint PyCapsule_IsValid(object, const char *)

cdef extern from *:
    """
    /* DLPack's description of an array, as its capsules hold it (github.com/dmlc/dlpack, version 0.8). */
    typedef struct {
        void *data;
        struct { int32_t type, id; } device; /* type 1 is the CPU */
        int32_t ndim;
        struct { uint8_t code, bits; uint16_t lanes; } dtype; /* code 2 is a float */
        int64_t *shape, *strides; /* in elements; NULL strides: C-contiguous */
        uint64_t byte_offset;
    } dl_tensor;
    /* Functions of a library for its own arrays (version 1.3); the last describes one, or sets an exception. */
    typedef struct {
        struct { uint32_t major, minor; } version;
        void *previous, *allocate, *managed_from, *managed_to;
        int (*describe)(void *array, dl_tensor *out);
    } dl_exchange;
    """
    ctypedef struct dl_device:
        int32_t type
    ctypedef struct dl_type:
        uint8_t code, bits
        uint16_t lanes
    ctypedef struct dl_tensor:
        void *data
        dl_device device
        int32_t ndim
        dl_type dtype
        int64_t *shape
        int64_t *strides
        uint64_t byte_offset
    ctypedef struct dl_version:
        uint32_t major
    ctypedef struct dl_exchange:
        dl_version version
        int (*describe)(void *, dl_tensor *) except -1

cdef extern from *:
    """
    #if defined(__clang__)
    #define FL_COMPILER "Clang " __clang_version__
    #elif defined(__GNUC__)
    #define FL_COMPILER "GCC " __VERSION__
    #else
    #define FL_COMPILER "unknown"
    #endif
    """
    const char *FL_COMPILER

# Calls longer than this release the GIL: a release costs little, but a busy thread may keep it for milliseconds.
cdef double GIL_US = 20.0

_CELLS = {"lstm": FL_LSTM, "gru": FL_GRU, "rnn": FL_RNN, "gated_rnn": FL_GATED_RNN}
_WEIGHT_TYPES = {None: FL_FULL, "bfloat16": FL_BFLOAT16, "int8": FL_INT8}
_DTYPES = {"float32": FL_FLOAT32, "float64": FL_FLOAT64}
_ACTIVATIONS = (
    "sigmoid", "tanh", "relu", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid", "elu",
    "softsign", "softplus",
)
_SPLITS = {None: FL_SPLIT_AUTO, "none": FL_SPLIT_NONE, "batch": FL_SPLIT_BATCH, "units": FL_SPLIT_UNITS}


cdef int check(fl_status status) except -1:
    if status == FL_OK:
        return 0
    message = fl_last_error().decode(errors="replace")
    if status == FL_BAD_ARGUMENT:
        raise ValueError(message)
    if status == FL_NO_MEMORY:
        raise MemoryError(message)
    raise RuntimeError(message)


cdef inline const void *data_of(array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef fl_array array_of(array) noexcept:
    cdef fl_array a
    a.data = data_of(array)
    a.count = 0 if array is None else cnp.PyArray_SIZE(array)
    return a


cdef enum:
    MOST_AXES = 8


cdef class Exporter:
    """How another library describes its arrays: `give` is what its type has as `__dlpack_c_exchange_api__`, or a
    function that makes a DLPack capsule of an array, which takes longer."""

    cdef object give
    cdef dl_exchange *api

    def __cinit__(self, give):
        self.give = give
        if PyCapsule_IsValid(give, "dlpack_exchange_api"):
            self.api = <dl_exchange *>PyCapsule_GetPointer(give, "dlpack_exchange_api")
            if self.api.version.major != 1:
                raise ValueError(f"give: DLPack {self.api.version.major}, wanted 1")
        elif not callable(give):
            raise TypeError(f"give: {type(give).__name__}, wanted DLPack's exchange functions or a function")

    cdef object describe(self, array, dl_tensor *out):
        """Returns what keeps the description valid."""
        if self.api != NULL:
            self.api.describe(<void *>array, out)
            return array
        capsule = self.give(array)
        out[0] = (<const dl_tensor *>PyCapsule_GetPointer(capsule, "dltensor"))[0]
        return capsule

    def array(self, x):
        """x, float32 or float64 in the CPU's memory, as a NumPy array of the same memory.

        Unlike `Tensor.numpy` it leaves x resizable. Raises TypeError for anything else.
        """
        cdef dl_tensor a
        cdef cnp.npy_intp shape[MOST_AXES]
        cdef cnp.npy_intp strides[MOST_AXES]
        cdef int64_t stride = 1
        cdef int i
        owner = self.describe(x, &a)
        if (a.device.type != 1 or a.dtype.code != 2 or a.dtype.lanes != 1 or a.dtype.bits not in (32, 64)
                or a.ndim > MOST_AXES):
            raise TypeError("x: wanted float32 or float64 in the CPU's memory")
        for i in range(a.ndim - 1, -1, -1):
            shape[i] = a.shape[i]
            strides[i] = (stride if a.strides == NULL else a.strides[i]) * (a.dtype.bits // 8)
            stride *= a.shape[i]
        kind = cnp.NPY_FLOAT32 if a.dtype.bits == 32 else cnp.NPY_FLOAT64
        data = NULL if a.data == NULL else <char *>a.data + a.byte_offset
        array = cnp.PyArray_New(np.ndarray, a.ndim, shape, kind, strides, data, 0, cnp.NPY_ARRAY_WRITEABLE, None)
        cnp.set_array_base(array, owner)
        return array


cdef void *floats_of(const dl_tensor *a, int item_size) noexcept:
    """The data, if it is a C-contiguous array of floats of that size in the CPU's memory, not empty; else NULL."""
    cdef int64_t expected = 1
    cdef int i
    cdef uint64_t at = <uint64_t>a.data + a.byte_offset
    if (a.device.type != 1 or a.dtype.code != 2 or a.dtype.lanes != 1 or a.dtype.bits != 8 * item_size
            or a.data == NULL or at % item_size):
        return NULL
    for i in range(a.ndim - 1, -1, -1):
        if a.shape[i] < 1 or (a.shape[i] > 1 and a.strides != NULL and a.strides[i] != expected):
            return NULL
        expected *= a.shape[i]
    return <void *>at


cdef fl_activation activation_of(str name, double alpha, double beta):
    cdef fl_activation f
    f.kind = _ACTIVATIONS.index(name)
    f.alpha = alpha
    f.beta = beta
    return f


cdef fl_dtype float_of(tuple arrays) except *:
    """The one dtype of C-contiguous arrays of as many elements, which the core takes as they are."""
    cdef cnp.ndarray first = <cnp.ndarray?>arrays[0]
    cdef int kind = cnp.PyArray_TYPE(first)
    if kind != cnp.NPY_FLOAT32 and kind != cnp.NPY_FLOAT64:
        raise TypeError("x: wanted float32 or float64")
    for array in arrays:
        if not (type(array) is cnp.ndarray and cnp.PyArray_TYPE(<cnp.ndarray>array) == kind
                and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>array)
                and cnp.PyArray_SIZE(<cnp.ndarray>array) == cnp.PyArray_SIZE(first)):
            raise ValueError("x, dy, out: not C-contiguous arrays of one dtype and size")
    return FL_FLOAT32 if kind == cnp.NPY_FLOAT32 else FL_FLOAT64


def activate(str name, double alpha, double beta, x, out=None):
    """f(x) of one of the eleven activations, into `out` where given, which may be x."""
    cdef fl_activation f = activation_of(name, alpha, beta)
    y = np.empty_like(x) if out is None else out
    cdef fl_dtype dtype = float_of((x, y))
    cdef const void *source = data_of(x)
    cdef void *target = <void *>data_of(y)
    cdef int64_t n = cnp.PyArray_SIZE(x)
    cdef fl_status status
    if not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>y):
        raise ValueError("out: not writable")
    if n > 10_000:
        with nogil:
            status = fl_activate(dtype, &f, n, source, target)
    else:
        status = fl_activate(dtype, &f, n, source, target)
    check(status)
    return y


def activate_backward(str name, double alpha, double beta, x, dy):
    """dy f'(x), a fresh array."""
    cdef fl_activation f = activation_of(name, alpha, beta)
    dx = np.empty_like(x)
    cdef fl_dtype dtype = float_of((x, dy, dx))
    cdef const void *at = data_of(x)
    cdef const void *source = data_of(dy)
    cdef void *target = <void *>data_of(dx)
    cdef int64_t n = cnp.PyArray_SIZE(x)
    cdef fl_status status
    with nogil:
        status = fl_activate_backward(dtype, &f, n, at, source, target)
    check(status)
    return dx


cdef class Core:
    """A layer of the C core; `layers.Layer` holds one."""

    cdef fl_layer *layer
    cdef readonly int64_t input_size, hidden_size, output_size, num_layers, directions
    cdef readonly bint has_c
    cdef readonly object dtype
    cdef int type_num, item_size
    cdef readonly bint bias, peepholes, projected, scaled

    def __cinit__(self, *, str cell, str dtype, int64_t input_size, int64_t hidden_size, int64_t num_layers,
                  bint bidirectional, bint reverse, bint bias, int64_t proj_size, bint peepholes, bint forget_gate,
                  bint coupled_gates, bint reset_after, activations, clip, weight_dtype=None,
                  int activation_bits=0):
        cdef fl_config config
        fl_config_init(&config, <fl_cell_kind><int>_CELLS[cell], input_size, hidden_size)
        config.dtype = _DTYPES[dtype]
        config.num_layers = num_layers
        config.proj_size = proj_size
        config.bidirectional = bidirectional
        config.reverse = reverse
        config.bias = bias
        config.peepholes = peepholes
        config.forget_gate = forget_gate
        config.coupled_gates = coupled_gates
        config.reset_after = reset_after
        config.clip = 0.0 if clip is None else clip
        config.weight_type = _WEIGHT_TYPES[weight_dtype]
        config.activation_bits = activation_bits
        if activations is not None:
            config.own_activations = 1
            for i, (name, alpha, beta) in enumerate(activations):
                config.activations[i].kind = _ACTIVATIONS.index(name)
                config.activations[i].alpha = alpha
                config.activations[i].beta = beta
        check(fl_create(&config, &self.layer))
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = proj_size or hidden_size
        self.num_layers = num_layers
        self.directions = 2 if bidirectional else 1
        self.has_c = cell == "lstm"
        self.dtype = np.dtype(dtype)
        self.type_num = cnp.NPY_FLOAT32 if dtype == "float32" else cnp.NPY_FLOAT64
        self.item_size = 4 if dtype == "float32" else 8
        self.bias = bias
        self.peepholes = peepholes
        self.projected = proj_size > 0
        self.scaled = weight_dtype == "int8"

    def __dealloc__(self):
        fl_free(self.layer)

    def set_weights(self, params):
        """Packs the arrays of a complete state dict and swaps them in; calls that run keep theirs."""
        cdef int64_t count = self.num_layers * self.directions, i
        cdef fl_weights *weights = <fl_weights *>calloc(count, sizeof(fl_weights))
        cdef fl_status status
        if weights == NULL:
            raise MemoryError("weights: no memory")
        try:
            for i in range(count):
                suffix = f"l{i // self.directions}" + ("_reverse" if i % self.directions else "")
                w = &weights[i]
                w.size = sizeof(fl_weights)
                w.weight_ih = array_of(params[f"weight_ih_{suffix}"])
                w.weight_hh = array_of(params[f"weight_hh_{suffix}"])
                if self.bias:
                    w.bias_ih = array_of(params[f"bias_ih_{suffix}"])
                    w.bias_hh = array_of(params[f"bias_hh_{suffix}"])
                if self.projected:
                    w.weight_hr = array_of(params[f"weight_hr_{suffix}"])
                if self.scaled:
                    w.scale_ih = array_of(params[f"weight_ih_{suffix}.scale"])
                    w.scale_hh = array_of(params[f"weight_hh_{suffix}.scale"])
                    if self.projected:
                        w.scale_hr = array_of(params[f"weight_hr_{suffix}.scale"])
                if self.peepholes:
                    w.weight_peephole = array_of(params[f"weight_peephole_{suffix}"])
            with nogil:
                status = fl_set_weights(self.layer, weights, count)
            check(status)
        finally:
            free(weights)

    cdef fl_sequence sequence_of(self, cnp.ndarray x, h0, c0, lengths, cnp.ndarray y, h_n, c_n, bint batch_first):
        cdef fl_sequence q
        cdef int t = 1 if batch_first else 0
        q.size = sizeof(fl_sequence)
        q.T = x.shape[t]
        q.B = x.shape[1 - t]
        q.x = cnp.PyArray_DATA(x)
        q.x_stride_t = x.strides[t] // self.item_size
        q.x_stride_b = x.strides[1 - t] // self.item_size
        q.y = cnp.PyArray_DATA(y)
        q.y_stride_t = y.strides[t] // self.item_size
        q.y_stride_b = y.strides[1 - t] // self.item_size
        q.lengths = <const int64_t *>data_of(lengths)
        q.h0 = data_of(h0)
        q.c0 = data_of(c0)
        q.h_n = <void *>data_of(h_n)
        q.c_n = <void *>data_of(c_n)
        return q

    cdef int run(self, const fl_sequence *q) except -1:
        """Without the GIL where that is worth its release."""
        cdef fl_status status
        if fl_estimate_us(self.layer, q.T, q.B) > GIL_US:
            with nogil:
                status = fl_forward(self.layer, q)
        else:
            status = fl_forward(self.layer, q)
        return check(status)

    cpdef forward(self, cnp.ndarray x, h0, c0, lengths, cnp.ndarray y, h_n, c_n, bint batch_first):
        """One call over x [T, B, I] ([B, T, I]) into y, h_n, c_n."""
        cdef fl_sequence q = self.sequence_of(x, h0, c0, lengths, y, h_n, c_n, batch_first)
        self.run(&q)

    cdef bint fits(self, a, int64_t first, int64_t second, int64_t third) noexcept:
        """Whether `a` is an array [first, second, third] that the core can take as it is; -1: any size."""
        if type(a) is not cnp.ndarray:
            return False
        array = <cnp.ndarray>a
        return (cnp.PyArray_TYPE(array) == self.type_num and cnp.PyArray_NDIM(array) == 3
                and cnp.PyArray_ISCARRAY_RO(array) and third == cnp.PyArray_DIM(array, 2)
                and (second < 0 or second == cnp.PyArray_DIM(array, 1))
                and (first < 0 or first == cnp.PyArray_DIM(array, 0)))

    cdef bint plain(self, cnp.ndarray a, int64_t rows, int64_t columns) noexcept:
        """Whether `a` is a [rows, columns] array that the core can take as it is."""
        return (cnp.PyArray_TYPE(a) == self.type_num and cnp.PyArray_NDIM(a) == 2 and cnp.PyArray_ISCARRAY_RO(a)
                and cnp.PyArray_DIM(a, 0) == rows and cnp.PyArray_DIM(a, 1) == columns)

    cdef cnp.ndarray target(self, out, int64_t rows, cnp.ndarray source):
        """Where a step from `source` writes: `out`, checked, or a fresh array [rows, P] where that is None."""
        cdef cnp.ndarray target
        cdef const char *from_ = <const char *>cnp.PyArray_DATA(source)
        cdef char *to
        cdef cnp.npy_intp dims[2]
        if out is None:
            dims[0] = rows
            dims[1] = self.output_size
            return <cnp.ndarray>cnp.PyArray_EMPTY(2, dims, self.type_num, 0)
        if not isinstance(out, cnp.ndarray):
            raise TypeError(f"out: {type(out).__name__}, wanted a numpy array")
        target = <cnp.ndarray>out
        if not self.plain(target, rows, self.output_size) or not cnp.PyArray_ISWRITEABLE(target):
            raise ValueError(
                f"out: {target.dtype} {(<object>target).shape}, wanted a writable C-contiguous {self.dtype} "
                f"array {(rows, self.output_size)}")
        to = <char *>cnp.PyArray_DATA(target)
        if from_ < to + cnp.PyArray_NBYTES(target) and to < from_ + cnp.PyArray_NBYTES(source):
            raise ValueError("out: overlaps x")
        return target

    def forward_plain(self, x, state, bint batch_first):
        """The call without detours: (y, h_n, c_n) where x [T, B, I] and the state need no conversion, else None.

        It saves the two microseconds that the checks take, which is more than a small layer's step.
        """
        cdef int64_t rows = self.num_layers * self.directions, B
        cdef cnp.npy_intp y_shape[3]
        cdef cnp.npy_intp h_shape[3]
        cdef cnp.npy_intp c_shape[3]
        h = c = c_n = None
        if not self.fits(x, -1, -1, self.input_size):
            return None
        B = cnp.PyArray_DIM(<cnp.ndarray>x, 0 if batch_first else 1)
        if state is not None:
            if not self.has_c:
                h = state
            elif type(state) is tuple and len(<tuple>state) == 2:
                h, c = <tuple>state
                if not self.fits(c, rows, B, self.hidden_size):
                    return None
            if not self.fits(h, rows, B, self.output_size):
                return None
        y_shape[0] = cnp.PyArray_DIM(<cnp.ndarray>x, 0)
        y_shape[1] = cnp.PyArray_DIM(<cnp.ndarray>x, 1)
        y_shape[2] = self.directions * self.output_size
        h_shape[0] = c_shape[0] = rows
        h_shape[1] = c_shape[1] = B
        h_shape[2] = self.output_size
        c_shape[2] = self.hidden_size
        y = cnp.PyArray_EMPTY(3, y_shape, self.type_num, 0)
        h_n = cnp.PyArray_EMPTY(3, h_shape, self.type_num, 0)
        if self.has_c:
            c_n = cnp.PyArray_EMPTY(3, c_shape, self.type_num, 0)
        self.forward(x, h, c, None, y, h_n, c_n, batch_first)
        return y, h_n, c_n

    def forward_tensors(self, Exporter export not None, x, h, c, bint batch_first, bint cell):
        """The call for arrays of another library, without detours: x [T, B, I] ([B, T, I]) and the states, or of a
        cell x [B, I] and states [B, ..]; None for zeros. `export` describes them, and its word is
        taken for all that is read.

        Returns (y, h_n, c_n); of a cell (y, None, c_n). None where anything is not as the core takes it: dtype,
        shape, memory, an empty x.
        """
        cdef fl_sequence q
        cdef int64_t rows = 1 if cell else self.num_layers * self.directions
        cdef cnp.npy_intp shape[3]
        cdef int t = 1 if batch_first else 0, ndim = 2 if cell else 3
        cdef dl_tensor a, s
        x = export.describe(x, &a)
        q.size = sizeof(fl_sequence)
        q.x = floats_of(&a, self.item_size)
        if q.x == NULL or a.ndim != ndim or a.shape[ndim - 1] != self.input_size:
            return None
        q.T = 1 if cell else a.shape[t]
        q.B = a.shape[0] if cell else a.shape[1 - t]
        q.h0 = q.c0 = q.lengths = NULL
        if h is not None:
            h = export.describe(h, &s)
            q.h0 = self.state_of(&s, rows, q.B, self.output_size, cell)
            if q.h0 == NULL:
                return None
        if c is not None:
            c = export.describe(c, &s)
            q.c0 = self.state_of(&s, rows, q.B, self.hidden_size, cell)
            if q.c0 == NULL or not self.has_c:
                return None
        q.x_stride_t = self.input_size * (1 if batch_first else q.B)
        q.x_stride_b = self.input_size * (q.T if batch_first else 1)
        shape[0] = a.shape[0]
        shape[1] = self.output_size if cell else a.shape[1]
        shape[2] = self.directions * self.output_size
        q.y_stride_t = shape[2] * (1 if batch_first else q.B)
        q.y_stride_b = shape[2] * (q.T if batch_first else 1)
        y = cnp.PyArray_EMPTY(ndim, shape, self.type_num, 0)
        h_n = c_n = None
        shape[0] = q.B if cell else rows
        shape[1] = self.output_size if cell else q.B
        shape[2] = self.output_size
        if not cell:
            h_n = cnp.PyArray_EMPTY(ndim, shape, self.type_num, 0)
        if self.has_c:
            shape[ndim - 1] = self.hidden_size
            c_n = cnp.PyArray_EMPTY(ndim, shape, self.type_num, 0)
        q.y = cnp.PyArray_DATA(<cnp.ndarray>y)
        q.h_n = <void *>data_of(h_n)
        q.c_n = <void *>data_of(c_n)
        self.run(&q)
        return y, h_n, c_n

    cdef const void *state_of(self, const dl_tensor *a, int64_t rows, int64_t B, int64_t width, bint cell) noexcept:
        cdef int64_t *shape = a.shape if cell else a.shape + 1
        if a.ndim != (2 if cell else 3) or not cell and a.shape[0] != rows or shape[0] != B or shape[1] != width:
            return NULL
        return floats_of(a, self.item_size)


cdef enum:
    FEW = 64
    MANY = 65536


cdef struct samples:
    int64_t step, count  # every step-th element, so many of them
    char *kept


cdef struct seen_array:
    const char *data
    int64_t rows, columns, count
    int64_t version
    samples few, many


cdef bint same_samples(const char *data, const samples *s, int item_size) noexcept nogil:
    cdef uint64_t differ = 0
    cdef int64_t k, at = 0
    if s.step == 1:
        return memcmp(data, s.kept, s.count * item_size) == 0
    if item_size == 4:
        for k in range(s.count):
            differ |= (<const uint32_t *>data)[at] ^ (<const uint32_t *>s.kept)[k]
            at += s.step
    else:
        for k in range(s.count):
            differ |= (<const uint64_t *>data)[at] ^ (<const uint64_t *>s.kept)[k]
            at += s.step
    return differ == 0


cdef bint have_a_factor(int64_t a, int64_t b) noexcept:
    while b:
        a, b = b, a % b
    return a > 1


cdef int take_samples(const seen_array *a, int64_t most, int item_size, samples *s) except -1:
    cdef int64_t k
    s.step = (a.count + most - 1) // most
    while have_a_factor(s.step, a.columns):  # or else it would never visit some columns
        s.step += 1
    s.count = (a.count + s.step - 1) // s.step
    s.kept = <char *>malloc(s.count * item_size)
    if s.kept == NULL:
        raise MemoryError("weights: no memory")
    for k in range(s.count):
        memcpy(s.kept + k * item_size, a.data + k * s.step * item_size, item_size)
    return 0


cdef class Watch:
    """Whether arrays still hold what they held: the same memory, the same `_version` (which PyTorch counts up at every
    change in place that it sees) and, at up to FEW or MANY places of each, the same bits.

    arrays: a dict of C-contiguous vectors and matrices, one dtype, which the owner keeps alive. `export` describes
    them.
    """

    cdef Exporter export
    cdef tuple names
    cdef int item_size
    cdef seen_array *seen

    def __cinit__(self, Exporter export not None, dict arrays, int item_size):
        cdef seen_array *s
        cdef dl_tensor a
        cdef int64_t i
        self.export = export
        self.names = tuple(arrays)
        self.item_size = item_size
        self.seen = <seen_array *>calloc(len(self.names) + 1, sizeof(seen_array))
        if self.seen == NULL:
            raise MemoryError("weights: no memory")
        for i, array in enumerate(arrays.values()):
            s = &self.seen[i]
            owner = export.describe(array, &a)
            if not self.measure(&a, s):
                raise ValueError("weights: wanted C-contiguous vectors and matrices of one dtype")
            s.version = version_of(array)
            take_samples(s, FEW, item_size, &s.few)
            take_samples(s, MANY, item_size, &s.many)

    def __dealloc__(self):
        cdef int64_t i
        if self.seen != NULL:
            for i in range(len(self.names)):
                free(self.seen[i].few.kept)
                free(self.seen[i].many.kept)
        free(self.seen)

    cdef bint measure(self, const dl_tensor *a, seen_array *s) noexcept:
        s.data = <const char *>floats_of(a, self.item_size)
        if s.data == NULL or a.ndim < 1 or a.ndim > 2:
            return False
        s.rows = a.shape[0]
        s.columns = a.shape[1] if a.ndim == 2 else 1
        s.count = s.rows * s.columns
        return True

    def unchanged(self, dict arrays, bint thorough):
        """Whether these arrays, by the same names, are those; thorough: at all the places, else at FEW of each."""
        cdef seen_array now
        cdef seen_array *s
        cdef dl_tensor a
        cdef int64_t i
        for i in range(len(self.names)):
            array = arrays.get(self.names[i])
            if array is None:
                return False
            s = &self.seen[i]
            owner = self.export.describe(array, &a)  # which keeps the memory for as long as it is looked at
            if (not self.measure(&a, &now) or now.data != s.data or now.rows != s.rows
                    or now.columns != s.columns or version_of(array) != s.version
                    or not same_samples(s.data, &s.many if thorough else &s.few, self.item_size)):
                return False
        return True


cdef int64_t version_of(array) except -2:
    """-1 if PyTorch does not count, as for tensors made in inference mode."""
    try:
        return array._version
    except RuntimeError:
        return -1


cdef fl_gradient gradient_of(array) noexcept:
    cdef fl_gradient g
    g.data = <void *>data_of(array)
    g.count = 0 if array is None else cnp.PyArray_SIZE(array)
    return g


cdef class TapeCore:
    """The recorded forward pass of one layer of a stack; `tape.Tape` holds one for each. Arrays are [T, B, n] with a
    contiguous last axis, or C-contiguous [D, B, n]."""

    cdef fl_tape *tape
    cdef object x  # what the tape points to
    cdef int64_t item_size

    def __cinit__(self, Core core not None, int64_t index, cnp.ndarray x, h0, c0, lengths, cnp.ndarray y, h_n, c_n,
                  int64_t checkpoint):
        cdef fl_sequence q = core.sequence_of(x, h0, c0, lengths, y, h_n, c_n, False)
        cdef fl_status status
        with nogil:
            status = fl_record(core.layer, index, &q, checkpoint, &self.tape)
        check(status)
        self.x = x
        self.item_size = core.item_size

    def __dealloc__(self):
        fl_tape_free(self.tape)

    @property
    def nbytes(self):
        return fl_tape_bytes(self.tape)

    def backward(self, cnp.ndarray dy, dh_n, dc_n, dx, dh0, dc0, parameters):
        """Fills dx, dh0, dc0 and the arrays of parameters, a dict for each direction; None: not wanted."""
        cdef fl_gradients g
        cdef fl_status status
        g.size = sizeof(fl_gradients)
        g.dy = cnp.PyArray_DATA(dy)
        g.dy_stride_t = dy.strides[0] // self.item_size
        g.dy_stride_b = dy.strides[1] // self.item_size
        g.dh_n = data_of(dh_n)
        g.dc_n = data_of(dc_n)
        g.dx = <void *>data_of(dx)
        g.dx_stride_t = 0 if dx is None else dx.strides[0] // self.item_size
        g.dx_stride_b = 0 if dx is None else dx.strides[1] // self.item_size
        g.dh0 = <void *>data_of(dh0)
        g.dc0 = <void *>data_of(dc0)
        for i, names in enumerate(parameters):
            w = &g.weights[<int>i]
            w.weight_ih = gradient_of(names["weight_ih"])
            w.weight_hh = gradient_of(names["weight_hh"])
            w.bias_ih = gradient_of(names["bias_ih"])
            w.bias_hh = gradient_of(names["bias_hh"])
            w.weight_hr = gradient_of(names["weight_hr"])
            w.weight_peephole = gradient_of(names["weight_peephole"])
        with nogil:
            status = fl_backward(self.tape, &g)
        check(status)


cdef class StreamCore:
    """The state of a batch of sequences that advance a step at a time; `layers.Stream` is one."""

    cdef fl_stream *stream
    cdef readonly Core _core
    cdef readonly int64_t batch_size
    cdef bint release_gil

    def __cinit__(self, Core core not None, int64_t batch_size, h0=None, c0=None, *args, **kwargs):
        self._core = core
        self.batch_size = batch_size
        self.release_gil = fl_estimate_us(core.layer, 1, batch_size) > GIL_US
        self.check_state(h0, c0)
        check(fl_stream_create(core.layer, batch_size, data_of(h0), data_of(c0), &self.stream))

    def __dealloc__(self):
        fl_stream_free(self.stream)

    cdef int check_state(self, h, c) except -1:
        """`_check` has seen to it; but the core would read whatever it is given."""
        if not ((h is None or self._core.fits(h, self._core.num_layers, self.batch_size, self._core.output_size))
                and (c is None or self._core.fits(c, self._core.num_layers, self.batch_size, self._core.hidden_size))):
            raise ValueError("state: not C-contiguous arrays of the stream's dtype and shape")
        return 0

    def _converted(self, x):
        """x as [B, I] that the core can take; `layers.Stream` puts its checks here."""
        raise TypeError(f"x: wanted a C-contiguous {self._core.dtype} array")

    def step(self, x, out=None):
        """One step: x [B, I] to the output [B, P], into `out` where given; nothing is allocated then.

        Raises TypeError or ValueError naming the argument if a dtype or shape is wrong, if `out` is not a writable
        C-contiguous array of the layer's dtype or overlaps `x`; RuntimeError if another thread is in a step of this
        stream.
        """
        cdef cnp.ndarray source, target
        cdef fl_status status
        if type(x) is cnp.ndarray and self._core.plain(<cnp.ndarray>x, self.batch_size, self._core.input_size):
            source = <cnp.ndarray>x
        else:
            source = self._converted(x)
            if not self._core.plain(source, self.batch_size, self._core.input_size):
                raise TypeError("x: not converted")
        target = self._core.target(out, self.batch_size, source)
        if self.release_gil:
            with nogil:
                status = fl_stream_step(self.stream, cnp.PyArray_DATA(source), cnp.PyArray_DATA(target))
        else:
            status = fl_stream_step(self.stream, cnp.PyArray_DATA(source), cnp.PyArray_DATA(target))
        if status != FL_OK:
            check(status)
        return target if out is None else out

    def get_state(self):
        """Copies of the state: (h [L, B, P],) or (h, c [L, B, H])."""
        shape = (self._core.num_layers, self.batch_size)
        h = np.empty((*shape, self._core.output_size), self._core.dtype)
        c = np.empty((*shape, self._core.hidden_size), self._core.dtype) if self._core.has_c else None
        check(fl_stream_get_state(self.stream, <void *>data_of(h), <void *>data_of(c)))
        return (h,) if c is None else (h, c)

    def set_state(self, h, c=None):
        self.check_state(h, c)
        check(fl_stream_set_state(self.stream, data_of(h), data_of(c)))

    def reset(self, rows=None):
        if rows is not None:
            rows = np.require(rows, np.int64, ["C", "A"])
        check(fl_stream_reset(self.stream, <const int64_t *>data_of(rows), 0 if rows is None else rows.size))

    def copy(self):
        """An independent stream, of the same class, in the same state."""
        cdef StreamCore other = type(self)(self._core, self.batch_size)
        cdef fl_stream *copy = NULL
        check(fl_stream_copy(self.stream, &copy))
        fl_stream_free(other.stream)
        other.stream = copy
        return other


def to_bfloat16(cnp.ndarray weight not None):
    """The upper halves, uint16, of a float32 array rounded to bfloat16, to nearest even."""
    cdef cnp.ndarray source = np.ascontiguousarray(weight, np.float32)
    cdef cnp.ndarray out = np.empty((<object>source).shape, np.uint16)
    check(fl_to_bfloat16(<const float *>cnp.PyArray_DATA(source), source.size, <uint16_t *>cnp.PyArray_DATA(out)))
    return out


def to_int8(cnp.ndarray weight not None):
    """int8 [rows, columns] and float32 scale [rows] of a float32 matrix. ValueError if a weight is not finite."""
    cdef cnp.ndarray source = np.ascontiguousarray(weight, np.float32)
    cdef int64_t rows = (<object>source).shape[0], columns = (<object>source).shape[1]
    cdef cnp.ndarray out = np.empty((rows, columns), np.int8)
    cdef cnp.ndarray scale = np.empty(rows, np.float32)
    check(fl_to_int8(<const float *>cnp.PyArray_DATA(source), rows, columns, <int8_t *>cnp.PyArray_DATA(out),
                     <float *>cnp.PyArray_DATA(scale)))
    return out, scale


cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int *) except? -1

cdef extern from "fastlstm.h" nogil:
    ctypedef struct fl_pool:
        pass
    fl_status fl_pool_create(const fl_layer *, int64_t, fl_pool **)
    void fl_pool_free(fl_pool *)
    fl_status fl_pool_open(fl_pool *, const void *, const void *, int64_t *)
    fl_status fl_pool_reserve(fl_pool *, int64_t)
    fl_status fl_pool_close(fl_pool *, int64_t)
    fl_status fl_pool_check(fl_pool *, int64_t, const int64_t *)
    int64_t fl_pool_count(const fl_pool *)
    int64_t fl_pool_capacity(const fl_pool *)
    fl_status fl_pool_step(fl_pool *, int64_t, const int64_t *, const void *, void *)
    fl_status fl_pool_get_state(fl_pool *, int64_t, const int64_t *, void *, void *)
    fl_status fl_pool_set_state(fl_pool *, int64_t, const int64_t *, const void *, const void *)
    fl_status fl_pool_reset(fl_pool *, int64_t)


cdef class PoolCore:
    """The states of many sequences, of which any take a step together; `pool.StreamPool` holds one for each recurrent
    layer. One call at a time: a second one raises RuntimeError."""

    cdef fl_pool *pool
    cdef readonly Core _core

    def __cinit__(self, Core core not None, int64_t capacity):
        self._core = core
        check(fl_pool_create(core.layer, capacity, &self.pool))

    def __dealloc__(self):
        fl_pool_free(self.pool)

    @property
    def count(self):
        return fl_pool_count(self.pool)

    @property
    def capacity(self):
        return fl_pool_capacity(self.pool)

    def has(self, int64_t id):
        cdef fl_status status = fl_pool_check(self.pool, 1, &id)
        if status != FL_BAD_ARGUMENT:
            check(status)
        return status == FL_OK

    def reserve(self, int64_t more):
        """Room for so many more, whose `open` then cannot fail."""
        check(fl_pool_reserve(self.pool, more))

    cdef int check_state(self, h, c, int64_t n) except -1:
        """`_check` has seen to it; but the core would read whatever it is given."""
        if not ((h is None or self._core.fits(h, self._core.num_layers, n, self._core.output_size))
                and (c is None or self._core.fits(c, self._core.num_layers, n, self._core.hidden_size))):
            raise ValueError("state: not C-contiguous arrays of the pool's dtype and shape")
        return 0

    def _ids(self, ids):
        """ids [n] as int64; `pool` puts its checks here."""
        raise TypeError("ids: wanted a C-contiguous int64 array")

    def _converted(self, x, int64_t n):
        """x as [n, I] that the core can take, likewise."""
        raise TypeError(f"x: wanted a C-contiguous {self._core.dtype} array")

    cdef bint are_ids(self, ids) noexcept:
        if type(ids) is not cnp.ndarray:
            return False
        array = <cnp.ndarray>ids
        return (cnp.PyArray_TYPE(array) == cnp.NPY_INT64 and cnp.PyArray_NDIM(array) == 1
                and cnp.PyArray_ISCARRAY_RO(array))

    def checked(self, ids):
        """ids [n] as an int64 array of our own; ValueError if one is not open or there twice."""
        cdef cnp.ndarray numbers = self.ids_of(ids).copy()
        check(fl_pool_check(self.pool, cnp.PyArray_DIM(numbers, 0), <const int64_t *>cnp.PyArray_DATA(numbers)))
        return numbers

    cdef cnp.ndarray ids_of(self, ids):
        """ids [n] as int64. A list of ints goes ten times faster than through NumPy."""
        cdef cnp.npy_intp n
        cdef cnp.ndarray array
        cdef int64_t *to
        cdef int64_t *end
        cdef int overflow = 0
        if self.are_ids(ids):
            return ids
        if type(ids) is list:
            n = len(<list>ids)
            array = <cnp.ndarray>cnp.PyArray_EMPTY(1, &n, cnp.NPY_INT64, 0)
            to = <int64_t *>cnp.PyArray_DATA(array)
            end = to + n
            for id in <list>ids:
                if to == end or type(id) is not int:
                    break
                to[0] = PyLong_AsLongLongAndOverflow(id, &overflow)
                if overflow:
                    break
                to += 1
            else:
                if to == end:
                    return array
        ids = self._ids(ids)
        if not self.are_ids(ids):
            raise TypeError("ids: not converted")
        return ids

    def step(self, ids, x, out=None):
        """One step of the sessions ids [n]: x [n, I] to the output [n, P], into `out` where given; nothing is allocated
        then if ids are an int64 array. Raises as `StreamCore.step`, and ValueError for an id that is not open or there
        twice."""
        cdef cnp.ndarray numbers = self.ids_of(ids)
        cdef int64_t n = cnp.PyArray_DIM(numbers, 0)
        cdef cnp.ndarray source, target
        cdef fl_status status
        if type(x) is cnp.ndarray and self._core.plain(<cnp.ndarray>x, n, self._core.input_size):
            source = <cnp.ndarray>x
        else:
            source = self._converted(x, n)
            if not self._core.plain(source, n, self._core.input_size):
                raise TypeError("x: not converted")
        target = self._core.target(out, n, source)
        if fl_estimate_us(self._core.layer, 1, n) > GIL_US:
            with nogil:
                status = fl_pool_step(self.pool, n, <const int64_t *>cnp.PyArray_DATA(numbers),
                                      cnp.PyArray_DATA(source), cnp.PyArray_DATA(target))
        else:
            status = fl_pool_step(self.pool, n, <const int64_t *>cnp.PyArray_DATA(numbers),
                                  cnp.PyArray_DATA(source), cnp.PyArray_DATA(target))
        if status != FL_OK:
            check(status)
        return target if out is None else out

    def get_state(self, ids):
        """Copies of the states of sessions ids [n]: (h [L, n, P],) or (h, c [L, n, H])."""
        cdef cnp.ndarray numbers = self.ids_of(ids)
        cdef int64_t n = cnp.PyArray_DIM(numbers, 0)
        shape = (self._core.num_layers, n)
        h = np.empty((*shape, self._core.output_size), self._core.dtype)
        c = np.empty((*shape, self._core.hidden_size), self._core.dtype) if self._core.has_c else None
        check(fl_pool_get_state(self.pool, n, <const int64_t *>cnp.PyArray_DATA(numbers), <void *>data_of(h),
                                <void *>data_of(c)))
        return (h,) if c is None else (h, c)


# What changes the sessions of several cores, of one model's layers, changes all or none: between the calls below nothing
# is allocated and no line of Python runs, so neither a signal's handler nor a finalizer comes between them. The same is
# done to all in the same order, so each session has the same id in each.

def open_in_all(list cores, list states):
    """A session from (h [L, 1, P], c [L, 1, H]), each None for zeros, of each core; its id."""
    cdef PoolCore core
    cdef int64_t id = -1
    cdef Py_ssize_t i
    for i in range(len(cores)):
        core = <PoolCore?>cores[i]
        h, c = <tuple?>states[i]
        core.check_state(h, c, 1)
    for i in range(len(cores)):
        core = <PoolCore>cores[i]
        check(fl_pool_reserve(core.pool, 1))
    for i in range(len(cores)):
        core = <PoolCore>cores[i]
        h, c = <tuple>states[i]
        check(fl_pool_open(core.pool, data_of(h), data_of(c), &id))
    return id


def close_in_all(list cores, int64_t id):
    for core in cores:
        check(fl_pool_close((<PoolCore?>core).pool, id))


def reset_in_all(list cores, int64_t id):
    for core in cores:
        check(fl_pool_reset((<PoolCore?>core).pool, id))


def set_state_in_all(list cores, ids, list states):
    """The states of sessions ids [n], as in `open_in_all` but for n of them."""
    cdef PoolCore core = <PoolCore?>cores[0]
    cdef cnp.ndarray numbers = core.ids_of(ids)
    cdef int64_t n = cnp.PyArray_DIM(numbers, 0)
    cdef Py_ssize_t i
    for i in range(len(cores)):
        core = <PoolCore?>cores[i]
        h, c = <tuple?>states[i]
        core.check_state(h, c, n)
    for i in range(len(cores)):
        core = <PoolCore>cores[i]
        h, c = <tuple>states[i]
        check(fl_pool_set_state(core.pool, n, <const int64_t *>cnp.PyArray_DATA(numbers), data_of(h), data_of(c)))


def set_num_threads(int64_t n):
    check(fl_set_num_threads(n))


def get_num_threads():
    n = fl_get_num_threads()
    if n < 0:
        raise ValueError(fl_last_error().decode(errors="replace"))
    return n


def set_spin_us(double us):
    check(fl_set_spin_us(us))


def isa():
    return fl_isa().decode()


def isas():
    names = []
    while fl_isa_at(len(names)) != NULL:
        names.append(fl_isa_at(len(names)).decode())
    return tuple(names)


def integer_isa():
    return fl_integer_isa().decode()


def integer_isas():
    names = []
    while fl_integer_isa_at(len(names)) != NULL:
        names.append(fl_integer_isa_at(len(names)).decode())
    return tuple(names)


def cpu_features():
    return tuple(fl_cpu_features().decode().split())


def compiler():
    return FL_COMPILER.decode()


def version():
    return fl_version().decode()


cdef double rate(fl_roof_fn *fn, cnp.ndarray data, int64_t n, int64_t repeats, double seconds) noexcept:
    """Operations a second, of the fastest of many short runs: what the machine can do when it is left alone."""
    cdef double best = 0, began, took, end = fl_os_now_us() + seconds * 1e6
    cdef int64_t done, i
    while True:
        began = fl_os_now_us()
        done = 0
        for i in range(repeats):
            done += fn(cnp.PyArray_DATA(data), n)
        took = fl_os_now_us() - began
        if took > 0 and done / took > best:
            best = done / took
        if began > end:
            return best * 1e6


def peak_flops(str dtype, double seconds=0.2):
    """Measured FMA peak of the path in use, one core, FLOP/s."""
    cdef const fl_kernels *k = fl_kernels_of(<fl_dtype><int>_DTYPES[dtype])
    return rate(k.roof_fma, np.linspace(0.1, 0.5, 12 * k.lanes).astype(dtype), 20_000, 1, seconds)


def multiply_add_ns(str dtype, double seconds=0.2):
    """Measured latency of a multiply-add of the path in use, ns."""
    cdef const fl_kernels *k = fl_kernels_of(<fl_dtype><int>_DTYPES[dtype])
    return 1e9 / rate(k.roof_chain, np.linspace(0.1, 0.5, k.lanes).astype(dtype), 10_000, 1, seconds)


def read_bandwidth(int64_t n_bytes, double seconds=0.2):
    """Measured rate of reading a buffer of that many bytes over and over, one core, bytes/s."""
    data = np.ones(max(n_bytes // 4, 1024), np.float32)
    return rate(fl_kernels_of(FL_FLOAT32).roof_read, data, n_bytes, max((1 << 20) // max(n_bytes, 1), 1), seconds)


cdef kernel_row(const fl_kernel_info *info, str name, str dtype, str path):
    return {"name": name, "op": info.op.decode(), "dtype": dtype, "isa": path,
            "bound": fl_kernel_bound(info.op, <fl_dtype><int>_DTYPES[dtype]), "doc": info.doc.decode()}


def kernels():
    """The kernel list, for every path that this CPU has."""
    cdef int64_t i = 0
    cdef const fl_kernel_info *info
    rows = []
    while (info := fl_kernel_at(i)) != NULL:
        op = info.op.decode()
        if info.integer:
            rows += [kernel_row(info, f"fl_{op}_{path}", "float32", path) for path in integer_isas()]
        else:
            for path in isas():
                rows.append(kernel_row(info, f"fl_{op}_f32_{path}", "float32", path))
                if info.f64:
                    rows.append(kernel_row(info, f"fl_{op}_f64_{path}", "float64", path))
        i += 1
    return rows


def map_kernel(str op, a, b=None, str path=None):
    """sigmoid(a), tanh(a) or sigmoid_tanh(a, b) = σ(a)·tanh(b), as the cells compute them, over C-contiguous arrays."""
    cdef cnp.ndarray first = np.ascontiguousarray(a)
    cdef cnp.ndarray second = first if b is None else np.ascontiguousarray(b, dtype=first.dtype)
    cdef cnp.ndarray out = np.empty_like(first)
    cdef bytes wanted = op.encode(), name = (path or isa()).encode()
    cdef const fl_kernels *k = fl_kernels_named(name, <fl_dtype><int>_DTYPES[str(first.dtype)])
    cdef const fl_kernel_info *info
    cdef int64_t i = 0
    if k == NULL:
        raise ValueError(f"path: this CPU has no {path}")
    if (<object>first).shape != (<object>second).shape:
        raise ValueError("b: not of the shape of a")
    while True:
        info = fl_kernel_at(i)
        if info == NULL:
            raise ValueError(f"op: no map kernel {op!r}")
        if strcmp(info.op, wanted) == 0 and strcmp(info.type, b"fl_map_fn") == 0:
            break
        i += 1
    (<fl_map_fn **>(<const char *>k + info.offset))[0](
        cnp.PyArray_DATA(first), cnp.PyArray_DATA(second), cnp.PyArray_DATA(out), cnp.PyArray_SIZE(first))
    return out


def force_split(kind):
    """Private, for tests: takes that split of the work whatever the size; None: decides by size again."""
    fl_force_split(<fl_split><int>_SPLITS[kind])


def last_split():
    return ("none", "batch", "units")[<int>fl_last_split()]


cdef extern from "fastlstm.h" nogil:
    ctypedef struct fl_linear:
        pass
    fl_status fl_linear_create(fl_dtype, int64_t, int64_t, fl_array, fl_array, fl_linear **)
    void fl_linear_free(fl_linear *)
    fl_status fl_linear_forward(const fl_linear *, int64_t, const void *, int64_t, void *)
    fl_status fl_linear_backward_input(const fl_linear *, int64_t, const void *, int64_t, void *)
    fl_status fl_linear_backward_weights(const fl_linear *, int64_t, const void *, int64_t, const void *, int64_t, void *,
                                         void *)
    double fl_linear_estimate_us(const fl_linear *, int64_t)


cdef class LinearCore:
    """y = x W^T + b with weight [O, I] and bias [O] or None, which never change; `modules.Linear` holds one."""

    cdef fl_linear *linear
    cdef readonly int64_t in_features, out_features
    cdef readonly object dtype
    cdef int type_num

    def __cinit__(self, cnp.ndarray weight not None, bias=None):
        self.dtype = weight.dtype
        self.type_num = cnp.PyArray_TYPE(weight)
        if not (str(self.dtype) in _DTYPES and cnp.PyArray_NDIM(weight) == 2 and cnp.PyArray_ISCARRAY_RO(weight)
                and (bias is None or type(bias) is cnp.ndarray and cnp.PyArray_TYPE(bias) == self.type_num
                     and cnp.PyArray_ISCARRAY_RO(bias))):
            raise ValueError("weight, bias: not C-contiguous arrays of one dtype")
        self.out_features, self.in_features = (<object>weight).shape
        check(fl_linear_create(<fl_dtype><int>_DTYPES[str(self.dtype)], self.in_features, self.out_features,
                               array_of(weight), array_of(bias), &self.linear))

    def __dealloc__(self):
        fl_linear_free(self.linear)

    cdef product(self, a, out, bint backward):
        cdef int64_t width = self.out_features if backward else self.in_features
        cdef int64_t columns = self.in_features if backward else self.out_features
        cdef int64_t rows
        cdef fl_status status
        cdef cnp.ndarray source, target
        if not self.fits(a, width):
            raise ValueError(f"not a C-contiguous {self.dtype} array [.., {width}]")
        source = <cnp.ndarray>a
        rows = cnp.PyArray_SIZE(source) // width
        if out is None:
            out = np.empty((*(<object>source).shape[:cnp.PyArray_NDIM(source) - 1], columns), self.dtype)
        elif not self.fits(out, columns) or cnp.PyArray_SIZE(<cnp.ndarray>out) != rows * columns:
            raise ValueError(f"out: not a C-contiguous {self.dtype} array [.., {columns}] of {rows} rows")
        target = <cnp.ndarray>out
        if fl_linear_estimate_us(self.linear, rows) > GIL_US:
            with nogil:
                status = self.run(backward, rows, cnp.PyArray_DATA(source), width, cnp.PyArray_DATA(target))
        else:
            status = self.run(backward, rows, cnp.PyArray_DATA(source), width, cnp.PyArray_DATA(target))
        check(status)
        return out

    cdef fl_status run(self, bint backward, int64_t rows, const void *a, int64_t stride, void *out) noexcept nogil:
        if backward:
            return fl_linear_backward_input(self.linear, rows, a, stride, out)
        return fl_linear_forward(self.linear, rows, a, stride, out)

    cdef bint fits(self, a, int64_t width) noexcept:
        """Whether `a` is an array [.., width] that the core can take as it is."""
        if type(a) is not cnp.ndarray:
            return False
        array = <cnp.ndarray>a
        return (cnp.PyArray_TYPE(array) == self.type_num and cnp.PyArray_ISCARRAY_RO(array)
                and cnp.PyArray_NDIM(array) > 0 and cnp.PyArray_DIM(array, cnp.PyArray_NDIM(array) - 1) == width)

    def forward(self, x, out=None):
        """y [.., O] of x [.., I], into `out` where given, which must not overlap x."""
        return self.product(x, out, False)

    def backward_input(self, dy):
        """dx [.., I] = dy W of dy [.., O]."""
        return self.product(dy, None, True)

    def backward_weights(self, x, dy):
        """dW [O, I] = dy^T x and db [O], the sum of dy, of x [.., I] and dy [.., O]."""
        cdef cnp.ndarray source, delta, weight, bias
        cdef int64_t rows
        cdef fl_status status
        if not self.fits(x, self.in_features) or not self.fits(dy, self.out_features):
            raise ValueError(f"x, dy: not C-contiguous {self.dtype} arrays of the layer's widths")
        source, delta = <cnp.ndarray>x, <cnp.ndarray>dy
        rows = cnp.PyArray_SIZE(source) // self.in_features
        if cnp.PyArray_SIZE(delta) != rows * self.out_features:
            raise ValueError("dy: not as many rows as x")
        weight = np.empty((self.out_features, self.in_features), self.dtype)
        bias = np.empty(self.out_features, self.dtype)
        with nogil:
            status = fl_linear_backward_weights(self.linear, rows, cnp.PyArray_DATA(source), self.in_features,
                                                cnp.PyArray_DATA(delta), self.out_features,
                                                cnp.PyArray_DATA(weight), cnp.PyArray_DATA(bias))
        check(status)
        return weight, bias


if fl_isa() == NULL:
    raise ImportError(fl_last_error().decode(errors="replace"))
if fl_get_num_threads() < 0:
    raise ImportError(fl_last_error().decode(errors="replace"))
