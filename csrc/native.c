// SPDX-License-Identifier: Apache-2.0
/*
 * native - the Python module `_native`: what cffi makes of xdpspead.h, and heaps as Python objects.
 *
 * How it works
 *
 * cffi binds every function, and a call through it takes 100 to 200 ns, as does each pointer that is to free itself. That
 * is nothing where something is done once per call. Heaps come hundreds of thousands of times a second, so the few types
 * that every one of them passes through are written here: the queue of those that were popped, iteration, a heap for the
 * user, the payload that arrays keep alive, and the heaps of several streams in turn. Classes that users know derive from
 * them, in Python.
 *
 * A heap has one owner at any time: the stream's ring, a batch, a handle. Memory for the next owner is had before the
 * heap is taken from the one before, so nothing that fails can lose a heap. All of it is guarded by the GIL, which is let
 * go only to wait for heaps, into a batch that nobody else knows yet, and to give much memory back.
 */
#include <Python.h>
#include <errno.h>
#include <stdbool.h>
#include <structmember.h>

#include "bits.h"
#include "packet.h"
#include "xdpspead.h"

/* Giving back more than this may take longer than it takes to let the GIL go and get it again. */
#define MUCH_MEMORY (UINT64_C(1) << 20)
/* Whoever waits looks whether a signal came at least this often, ms: it may come to another thread. */
#define SLICE_MS 200
/* Items for which there is room on the stack. */
#define FEW_ITEMS 64

/* What cffi generates. */
PyMODINIT_FUNC PyInit__cffi(void);

struct module_state {
	PyTypeObject *handle_type, *payload_type;
};

static void delete_object(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

/* ---------------------------------------------------------------- payloads */

struct payload {
	PyObject object;
	uint8_t *data; /* a reference */
	uint64_t size;
};

static void payload_dealloc(PyObject *self)
{
	struct payload *payload = (struct payload *)self;

	if (payload->size < MUCH_MEMORY) {
		xps_payload_free(payload->data);
	} else {
		PyThreadState *thread = PyEval_SaveThread();

		xps_payload_free(payload->data);
		PyEval_RestoreThread(thread);
	}
	delete_object(self);
}

static int payload_buffer(PyObject *self, Py_buffer *view, int flags)
{
	struct payload *payload = (struct payload *)self;

	return PyBuffer_FillInfo(view, self, payload->data, (Py_ssize_t)payload->size, 0, flags);
}

static PyType_Slot payload_slots[] = {
	{ Py_tp_doc, (void *)"The payload of a heap, which it keeps alive: a buffer of bytes that can be written to." },
	{ Py_tp_dealloc, (void *)payload_dealloc },
	{ Py_bf_getbuffer, (void *)payload_buffer },
	{ 0, NULL },
};

static PyType_Spec payload_spec = {
	.name = "xdpspead._native.HeapPayload",
	.basicsize = sizeof(struct payload),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = payload_slots,
};

/* ---------------------------------------------------------------- heaps */

struct handle {
	PyObject object;
	struct xps_heap *heap; /* NULL only while nobody else has the handle yet */
	PyObject *weak_references;
	unsigned long bug_compat;
};

static const struct xps_heap *heap_of(PyObject *handle)
{
	return ((struct handle *)handle)->heap;
}

static void free_heap(struct xps_heap *heap)
{
	if (!heap || heap->capacity < MUCH_MEMORY) {
		xps_heap_free(heap);
	} else {
		PyThreadState *thread = PyEval_SaveThread();

		xps_heap_free(heap);
		PyEval_RestoreThread(thread);
	}
}

static void handle_dealloc(PyObject *self)
{
	struct handle *handle = (struct handle *)self;

	if (handle->weak_references)
		PyObject_ClearWeakRefs(self);
	free_heap(handle->heap);
	delete_object(self);
}

static PyObject *handle_cnt(PyObject *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLongLong(heap_of(self)->cnt);
}

static PyObject *handle_flags(PyObject *self, void *unused)
{
	(void)unused;
	return PyLong_FromLong(heap_of(self)->flags);
}

static PyObject *handle_size(PyObject *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLongLong(heap_of(self)->size);
}

static PyObject *handle_length(PyObject *self, void *unused)
{
	(void)unused;
	return PyLong_FromLongLong(heap_of(self)->length);
}

static PyObject *handle_received(PyObject *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLongLong(heap_of(self)->received);
}

static PyObject *handle_ranges(PyObject *self, void *unused)
{
	const struct xps_heap *heap = heap_of(self);
	PyObject *ranges = PyList_New(heap->n_ranges);

	(void)unused;
	for (uint32_t i = 0; ranges && i < heap->n_ranges; i++) {
		PyObject *range = Py_BuildValue("KK", (unsigned long long)heap->ranges[2 * i],
						(unsigned long long)heap->ranges[2 * i + 1]);

		if (range)
			PyList_SetItem(ranges, i, range);
		else
			Py_CLEAR(ranges);
	}
	return ranges;
}

static PyObject *handle_address_bits(PyObject *self, void *unused)
{
	(void)unused;
	return PyLong_FromLong(heap_of(self)->address_bits);
}

static PyObject *handle_bug_compat(PyObject *self, void *unused)
{
	(void)unused;
	return PyLong_FromUnsignedLong(((struct handle *)self)->bug_compat);
}

/* None if there is none. */
static PyObject *make_payload(struct xps_heap *heap, PyTypeObject *type)
{
	struct payload *payload;

	if (!heap->payload)
		Py_RETURN_NONE;
	payload = (struct payload *)PyType_GenericAlloc(type, 0);
	if (payload) {
		payload->data = xps_heap_take_payload(heap);
		payload->size = heap->size;
	}
	return (PyObject *)payload;
}

static PyObject *make_entry(const struct xps_item *item)
{
	PyObject *fields[] = {
		PyLong_FromUnsignedLongLong(item->id),     PyBool_FromLong(item->immediate),
		PyLong_FromUnsignedLongLong(item->value),  PyLong_FromUnsignedLongLong(item->offset),
		PyLong_FromUnsignedLongLong(item->length),
	};
	PyObject *entry = PyTuple_New(5);

	for (Py_ssize_t i = 0; i < 5; i++) {
		if (entry && fields[i]) {
			PyTuple_SetItem(entry, i, fields[i]);
		} else {
			Py_XDECREF(fields[i]);
			Py_CLEAR(entry);
		}
	}
	return entry;
}

static bool is_entry(const struct xps_item *item)
{
	return item->id != XPS_ID_DESCRIPTOR;
}

static PyObject *entries_of(const struct xps_item *items, int n)
{
	Py_ssize_t n_entries = 0, at = 0;
	PyObject *entries;

	for (int i = 0; i < n; i++)
		n_entries += is_entry(&items[i]);
	entries = PyTuple_New(n_entries);
	for (int i = 0; entries && i < n; i++) {
		PyObject *entry;

		if (!is_entry(&items[i]))
			continue;
		entry = make_entry(&items[i]);
		if (entry)
			PyTuple_SetItem(entries, at++, entry);
		else
			Py_CLEAR(entries);
	}
	return entries;
}

static bool is_descriptor(const struct xps_item *item)
{
	return item->id == XPS_ID_DESCRIPTOR && !item->immediate;
}

static PyObject *descriptors_of(const struct xps_item *items, int n, PyObject *payload)
{
	Py_ssize_t n_descriptors = 0, at = 0;
	PyObject *descriptors, *bytes;

	for (int i = 0; i < n; i++)
		n_descriptors += is_descriptor(&items[i]);
	descriptors = PyTuple_New(n_descriptors);
	if (!descriptors || !n_descriptors)
		return descriptors;
	bytes = PyMemoryView_FromObject(payload);
	if (!bytes)
		Py_CLEAR(descriptors);
	for (int i = 0; descriptors && i < n; i++) {
		const Py_ssize_t start = (Py_ssize_t)items[i].offset;
		PyObject *descriptor;

		if (!is_descriptor(&items[i]))
			continue;
		descriptor = PySequence_GetSlice(bytes, start, start + (Py_ssize_t)items[i].length);
		if (descriptor)
			PyTuple_SetItem(descriptors, at++, descriptor);
		else
			Py_CLEAR(descriptors);
	}
	Py_XDECREF(bytes);
	return descriptors;
}

static PyObject *read_heap(struct xps_heap *heap, struct xps_item *items, PyTypeObject *payload_type)
{
	const int n = xps_heap_items(heap, items);
	PyObject *payload = make_payload(heap, payload_type);
	PyObject *descriptors = payload ? descriptors_of(items, n, payload) : NULL;
	PyObject *width = PyLong_FromLong(heap->address_bits / 8);
	PyObject *entries = entries_of(items, n);
	PyObject *contents = NULL;

	if (descriptors && width && entries)
		contents = PyTuple_Pack(4, descriptors, payload, width, entries);
	Py_XDECREF(payload);
	Py_XDECREF(descriptors);
	Py_XDECREF(width);
	Py_XDECREF(entries);
	return contents;
}

PyDoc_STRVAR(read_doc, "_read($self, /)\n--\n\n"
		       "Return all that is in the heap.\n\n"
		       "Returns\n"
		       "-------\n"
		       "descriptors : tuple of memoryview\n"
		       "    As they were sent.\n"
		       "payload : HeapPayload or None\n"
		       "    None if there is none.\n"
		       "address_bytes : int\n"
		       "    Width of immediate values, in bytes.\n"
		       "entries : tuple of tuple\n"
		       "    Of all other items: identifier, whether it is immediate, immediate value, offset and\n"
		       "    length in the payload.");

static PyObject *handle_read(PyObject *self, PyTypeObject *type, PyObject *const *args, Py_ssize_t n_args,
			     PyObject *keywords)
{
	const struct module_state *state = PyType_GetModuleState(type);
	struct xps_heap *heap = ((struct handle *)self)->heap;
	struct xps_item few[FEW_ITEMS], *items = few;
	PyObject *contents;

	(void)args;
	if (n_args || keywords) {
		PyErr_SetString(PyExc_TypeError, "_read() takes no arguments");
		return NULL;
	}
	if (heap->n_pointers > FEW_ITEMS)
		items = PyMem_Malloc(heap->n_pointers * sizeof(*items));
	if (!items)
		return PyErr_NoMemory();
	contents = read_heap(heap, items, state->payload_type);
	if (items != few)
		PyMem_Free(items);
	return contents;
}

static PyGetSetDef handle_getters[] = {
	{ "cnt", handle_cnt, NULL, "Heap identifier.", NULL },
	{ "_flags", handle_flags, NULL, "Bitwise or of ``XPS_HEAP_*``.", NULL },
	{ "_size", handle_size, NULL, "Bytes of payload that are there.", NULL },
	{ "_length", handle_length, NULL, "Bytes of payload that the sender announced, -1 if it did not.", NULL },
	{ "_received", handle_received, NULL, "Bytes of payload that arrived.", NULL },
	{ "_ranges", handle_ranges, NULL, "Ranges of payload that arrived, if they were kept.", NULL },
	{ "_address_bits", handle_address_bits, NULL, "The XX of SPEAD-64-XX.", NULL },
	{ "_bug_compat", handle_bug_compat, NULL, "What the stream's configuration says about that.", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyMethodDef handle_methods[] = {
	{ "_read", (PyCFunction)(void (*)(void))handle_read, METH_METHOD | METH_FASTCALL | METH_KEYWORDS, read_doc },
	{ NULL, NULL, 0, NULL },
};

static PyMemberDef handle_members[] = {
	{ "__weaklistoffset__", T_PYSSIZET, offsetof(struct handle, weak_references), READONLY, NULL },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot handle_slots[] = {
	{ Py_tp_doc, (void *)"A heap for the user: what its classes derive from. A `HeapQueue` makes them." },
	{ Py_tp_dealloc, (void *)handle_dealloc },
	{ Py_tp_getset, handle_getters },
	{ Py_tp_methods, handle_methods },
	{ Py_tp_members, handle_members },
	{ 0, NULL },
};

static PyType_Spec handle_spec = {
	.name = "xdpspead._native.HeapHandle",
	.basicsize = sizeof(struct handle),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = handle_slots,
};

/* ---------------------------------------------------------------- from the ring to the user */

/* What one call popped; those before `next` have been handed out. */
struct batch {
	struct batch *after;
	int next, n;
	struct xps_heap *heaps[];
};

struct queue {
	PyObject object;
	PyObject *owner;  /* keeps the stream */
	PyObject *memory; /* that the stream reads */
	struct xps_stream *stream;
	PyTypeObject *kinds[2]; /* of incomplete heaps and of whole ones */
	unsigned long bug_compat;
	struct batch *first, *last; /* none of them empty */
	Py_ssize_t n_heaps;
};

/*
 * Pop `n` heaps, or `ahead` if that is not 0, to the end of the queue. Returns what popping does, or -ENOMEM. The GIL is
 * let go to wait, and only then.
 */
static int fill(struct queue *queue, int n, int ahead, int timeout_ms)
{
	const int most = ahead ? ahead : n;
	struct batch *batch = PyMem_Malloc(sizeof(*batch) + (size_t)most * sizeof(batch->heaps[0]));
	PyThreadState *thread;

	if (!batch)
		return -ENOMEM;
	batch->after = NULL;
	batch->next = 0;
	thread = timeout_ms ? PyEval_SaveThread() : NULL;
	if (ahead)
		n = xps_stream_pop_ahead(queue->stream, batch->heaps, most, timeout_ms);
	else
		n = xps_stream_pop(queue->stream, batch->heaps, most, timeout_ms);
	if (thread)
		PyEval_RestoreThread(thread);
	batch->n = n;
	if (n <= 0) {
		PyMem_Free(batch);
		return n;
	}
	if (queue->first)
		queue->last->after = batch;
	else
		queue->first = batch;
	queue->last = batch;
	queue->n_heaps += n;
	return n;
}

/*
 * A worker wrote it, and has it in its own processor's cache: so have it come while the user looks at the one before. It
 * most often lies behind its payload's count of references.
 */
static void prefetch(const struct xps_heap *heap)
{
	const char *count = (const char *)heap - XPS_CACHE_LINE;

	for (size_t offset = 0; offset < XPS_CACHE_LINE + sizeof(*heap); offset += XPS_CACHE_LINE)
		__builtin_prefetch(count + offset, 1);
}

/* The first heap of a queue that is not empty, which from now on is the caller's. */
static struct xps_heap *remove_first(struct queue *queue)
{
	struct batch *batch = queue->first;
	struct xps_heap *heap = batch->heaps[batch->next++];

	queue->n_heaps--;
	if (batch->next < batch->n) {
		prefetch(batch->heaps[batch->next]);
	} else {
		queue->first = batch->after;
		PyMem_Free(batch);
	}
	return heap;
}

/* A handle for `heap`, which it does not own yet. */
static PyObject *make_handle(const struct queue *queue, const struct xps_heap *heap)
{
	PyObject *handle = PyType_GenericAlloc(queue->kinds[heap->flags & XPS_HEAP_CONTIGUOUS], 0);

	if (handle)
		((struct handle *)handle)->bug_compat = queue->bug_compat;
	return handle;
}

/* Put handles for the first `n` heaps into a list of as many, without giving them those yet. */
static bool make_handles(const struct queue *queue, PyObject *list, Py_ssize_t n)
{
	const struct batch *batch = queue->first;
	int next = n ? batch->next : 0;

	for (Py_ssize_t i = 0; i < n; i++) {
		PyObject *handle;

		if (next == batch->n) {
			batch = batch->after;
			next = batch->next;
		}
		handle = make_handle(queue, batch->heaps[next++]);
		if (!handle)
			return false;
		PyList_SetItem(list, i, handle);
	}
	return true;
}

/* A list of the first `n` heaps in the queue, or of all if those are fewer. On error none is taken. */
static PyObject *take_list(struct queue *queue, Py_ssize_t n)
{
	/* It could run anybody's code between a look at the queue and what comes of it. */
	const int collecting = PyGC_Disable();
	PyObject *list;

	n = n < queue->n_heaps ? n : queue->n_heaps;
	list = PyList_New(n);
	if (list && !make_handles(queue, list, n))
		Py_CLEAR(list);
	for (Py_ssize_t i = 0; list && i < n; i++)
		((struct handle *)PyList_GetItem(list, i))->heap = remove_first(queue);
	if (collecting)
		PyGC_Enable();
	return list;
}

/* The first heap in the queue. NULL: there is none, or no memory. */
static PyObject *take_one(struct queue *queue)
{
	const int collecting = PyGC_Disable(); /* as above */
	PyObject *handle = NULL;

	if (queue->n_heaps)
		handle = make_handle(queue, queue->first->heaps[queue->first->next]);
	if (handle)
		((struct handle *)handle)->heap = remove_first(queue);
	if (collecting)
		PyGC_Enable();
	return handle;
}

PyDoc_STRVAR(take_doc, "take($self, n, ahead, timeout_ms, /)\n--\n\n"
		       "Take heaps out of the queue or, if it is empty, out of the ring, waiting for the first.\n\n"
		       "Parameters\n"
		       "----------\n"
		       "n : int\n"
		       "    At most so many.\n"
		       "ahead : int\n"
		       "    How many to pop if the queue is empty, of which those that are not taken stay in it and\n"
		       "    in the room of the ring; 0 to pop `n`.\n"
		       "timeout_ms : int\n"
		       "    How long to wait; 0 does not.\n\n"
		       "Returns\n"
		       "-------\n"
		       "code : int\n"
		       "    If there is no heap: 0 on time-out, or a negative errno.\n"
		       "heaps : list of HeapHandle");

static PyObject *queue_take(PyObject *self, PyObject *args)
{
	struct queue *queue = (struct queue *)self;
	PyObject *result = NULL, *code, *heaps;
	int n, ahead, timeout_ms, popped = 0;

	if (!PyArg_ParseTuple(args, "iii:take", &n, &ahead, &timeout_ms))
		return NULL;
	if (n < 1 || ahead < 0) {
		PyErr_SetString(PyExc_ValueError, "there is no such number of heaps");
		return NULL;
	}
	if (!queue->n_heaps)
		popped = fill(queue, n, ahead, timeout_ms);
	code = PyLong_FromLong(popped);
	/* First what holds the heaps, then these: so nothing can fail that has them. */
	if (code)
		result = PyTuple_Pack(2, code, Py_None);
	Py_XDECREF(code);
	if (!result)
		return NULL;
	heaps = take_list(queue, n);
	if (heaps)
		PyTuple_SetItem(result, 1, heaps);
	else
		Py_CLEAR(result);
	return result;
}

static PyObject *queue_next(PyObject *self)
{
	return take_one((struct queue *)self);
}

static Py_ssize_t queue_length(PyObject *self)
{
	return ((struct queue *)self)->n_heaps;
}

static PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	const struct module_state *state = PyType_GetModuleState(type);
	PyObject *owner, *memory, *incomplete, *whole;
	unsigned long bug_compat;
	unsigned long long address;
	struct queue *queue;

	if (keywords) {
		PyErr_SetString(PyExc_TypeError, "HeapQueue() takes no keyword arguments");
		return NULL;
	}
	if (!PyArg_ParseTuple(args, "OOK(O!O!)k:HeapQueue", &owner, &memory, &address, &PyType_Type, &incomplete,
			      &PyType_Type, &whole, &bug_compat))
		return NULL;
	if (!PyType_IsSubtype((PyTypeObject *)incomplete, state->handle_type) ||
	    !PyType_IsSubtype((PyTypeObject *)whole, state->handle_type)) {
		PyErr_SetString(PyExc_TypeError, "kinds must be classes of HeapHandle");
		return NULL;
	}
	queue = (struct queue *)PyType_GenericAlloc(type, 0);
	if (!queue)
		return NULL;
	queue->owner = Py_NewRef(owner);
	queue->memory = Py_NewRef(memory);
	queue->stream = (struct xps_stream *)(uintptr_t)address;
	queue->kinds[0] = (PyTypeObject *)Py_NewRef(incomplete);
	queue->kinds[XPS_HEAP_CONTIGUOUS] = (PyTypeObject *)Py_NewRef(whole);
	queue->bug_compat = bug_compat;
	return (PyObject *)queue;
}

static void queue_dealloc(PyObject *self)
{
	struct queue *queue = (struct queue *)self;

	while (queue->n_heaps)
		free_heap(remove_first(queue));
	Py_XDECREF(queue->owner);
	Py_XDECREF(queue->memory);
	Py_XDECREF((PyObject *)queue->kinds[0]);
	Py_XDECREF((PyObject *)queue->kinds[1]);
	delete_object(self);
}

static PyMethodDef queue_methods[] = {
	{ "take", queue_take, METH_VARARGS, take_doc },
	{ NULL, NULL, 0, NULL },
};

PyDoc_STRVAR(queue_doc, "HeapQueue(owner, memory, address, kinds, bug_compat)\n--\n\n"
			"Heaps that have left a stream's ring and were handed to nobody.\n\n"
			"Iteration gives those that are there, and may be begun again when there are more.\n\n"
			"Parameters\n"
			"----------\n"
			"owner : object\n"
			"    Keeps the stream.\n"
			"memory : object\n"
			"    What the stream reads, which is not let go before it.\n"
			"address : int\n"
			"    Where that is: a ``struct xps_stream *``.\n"
			"kinds : tuple of two types\n"
			"    Classes of incomplete heaps and of whole ones.\n"
			"bug_compat : int\n"
			"    That of the heaps.");

static PyType_Slot queue_slots[] = {
	{ Py_tp_doc, (void *)queue_doc },         { Py_tp_new, (void *)queue_new },
	{ Py_tp_dealloc, (void *)queue_dealloc }, { Py_tp_iter, (void *)PyObject_SelfIter },
	{ Py_tp_iternext, (void *)queue_next },   { Py_sq_length, (void *)queue_length },
	{ Py_tp_methods, queue_methods },         { 0, NULL },
};

static PyType_Spec queue_spec = {
	.name = "xdpspead._native.HeapQueue",
	.basicsize = sizeof(struct queue),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = queue_slots,
};

/* ---------------------------------------------------------------- streams that are iterated over */

struct iterator {
	PyObject object;
	PyObject *queue; /* NULL: not set yet */
	int ahead;       /* heaps to pop at a time */
};

static PyObject *iterator_queue(PyObject *self, void *unused)
{
	PyObject *queue = ((struct iterator *)self)->queue;

	(void)unused;
	return Py_NewRef(queue ? queue : Py_None);
}

static int iterator_set_queue(PyObject *self, PyObject *queue, void *unused)
{
	struct iterator *iterator = (struct iterator *)self;
	PyObject *old = iterator->queue;

	(void)unused;
	if (!queue || PyType_GetSlot(Py_TYPE(queue), Py_tp_iternext) != (void *)queue_next) {
		PyErr_SetString(PyExc_TypeError, "it must be a HeapQueue");
		return -1;
	}
	iterator->queue = Py_NewRef(queue);
	Py_XDECREF(old);
	return 0;
}

/*
 * Wait until there are heaps in the queue. Python's code is not asked, because after a wait nothing of it is in the caches.
 * Returns 1, 0 if there will be none, or -1 if that ends the iteration: well, or with an exception, which is that of a
 * signal's handler, or MemoryError.
 */
static int wait_for_heaps(struct queue *queue, int ahead)
{
	struct xps_fail fail;

	while (!queue->n_heaps) {
		const int popped = fill(queue, 1, ahead > 0 ? ahead : 1, SLICE_MS);

		/* Meanwhile, whoever else reads the stream may have put some into the queue, or taken them. */
		if (popped > 0 || queue->n_heaps)
			continue;
		if (popped == -EPIPE && xps_stream_failure(queue->stream, &fail) == 0)
			return -1;
		if (popped == -ENOMEM)
			PyErr_NoMemory();
		else if (popped != 0 && popped != -EINTR)
			return 0;
		if (PyErr_Occurred() || PyErr_CheckSignals())
			return -1;
	}
	return 1;
}

static PyObject *iterator_next(PyObject *self)
{
	struct iterator *iterator = (struct iterator *)self;
	struct queue *queue = (struct queue *)iterator->queue;
	PyObject *heap = NULL;
	int ready = 0;

	if (queue && queue->n_heaps)
		return take_one(queue);
	if (queue) {
		Py_INCREF((PyObject *)queue); /* somebody may set another one meanwhile */
		ready = wait_for_heaps(queue, iterator->ahead);
		if (ready > 0)
			heap = take_one(queue);
		Py_DECREF((PyObject *)queue);
	}
	return ready ? heap : PyObject_CallMethod(self, "_end_of_heaps", NULL);
}

static void iterator_dealloc(PyObject *self)
{
	Py_XDECREF(((struct iterator *)self)->queue);
	delete_object(self);
}

static PyGetSetDef iterator_getters[] = {
	{ "_popped", iterator_queue, iterator_set_queue, "Heaps that are next.", NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyMemberDef iterator_members[] = {
	{ "_batch", T_INT, offsetof(struct iterator, ahead), 0, "Heaps to pop at a time, at least 1." },
	{ NULL, 0, 0, 0, NULL },
};

PyDoc_STRVAR(iterator_doc,
	     "Base of a stream that is its own iterator.\n\n"
	     "The next heap is the first in the queue ``_popped``, which is filled with up to ``_batch`` heaps\n"
	     "when it is empty. Iteration ends when the stream has; if that was because of an error, or no heap\n"
	     "can come for another reason, the next is what the method ``_end_of_heaps`` returns.");

static PyType_Slot iterator_slots[] = {
	{ Py_tp_doc, (void *)iterator_doc },
	{ Py_tp_dealloc, (void *)iterator_dealloc },
	{ Py_tp_getset, iterator_getters },
	{ Py_tp_members, iterator_members },
	{ Py_tp_iter, (void *)PyObject_SelfIter },
	{ Py_tp_iternext, (void *)iterator_next },
	{ 0, NULL },
};

static PyType_Spec iterator_spec = {
	.name = "xdpspead._native.HeapIterator",
	.basicsize = sizeof(struct iterator),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
	.slots = iterator_slots,
};

/* ---------------------------------------------------------------- several streams that are iterated over */

enum {
	IN_TURN = 1, /* among those whose turn comes */
	TO_POP = 2,  /* there was something in the ring, and nothing has been popped since */
	ENDED = 4,
};

/* There is no heap now, but may be one later. */
#define NOT_NOW (-2)

struct merge {
	PyObject object;
	PyObject *streams; /* tuple: what is handed out with each heap */
	PyObject *queues;  /* tuple of as many: where the heaps are; these keep what `core` needs */
	struct xps_merge *core;
	int ahead;
	uint32_t n, n_open;
	uint32_t *turns; /* a ring of `n`: who is IN_TURN */
	uint32_t first_turn, n_turns;
	uint8_t *states;
};

static struct queue *queue_of(const struct merge *merge, uint32_t i)
{
	return (struct queue *)PyTuple_GetItem(merge->queues, i);
}

static void add_turn(struct merge *merge, uint32_t i)
{
	merge->states[i] |= TO_POP;
	if (merge->states[i] & IN_TURN)
		return;
	merge->states[i] |= IN_TURN;
	merge->turns[(merge->first_turn + merge->n_turns++) % merge->n] = i;
}

static void end_turn(struct merge *merge)
{
	merge->states[merge->turns[merge->first_turn]] &= (uint8_t)~IN_TURN;
	merge->first_turn = (merge->first_turn + 1) % merge->n;
	merge->n_turns--;
}

static PyObject *refuse_child(void)
{
	PyErr_SetString(PyExc_RuntimeError, "these streams were made before a fork and belong to the parent process");
	return NULL;
}

/*
 * Returns 0, or -1 and an exception, which is that of a signal's handler; or NOT_NOW. Others may change everything
 * meanwhile.
 */
static int find_turn(struct merge *merge, bool wait)
{
	PyThreadState *thread;
	int i = xps_merge_next(merge->core, 0);

	if (i == -ETIMEDOUT && !wait)
		return NOT_NOW;
	if (i == -ETIMEDOUT) {
		thread = PyEval_SaveThread();
		i = xps_merge_next(merge->core, SLICE_MS);
		PyEval_RestoreThread(thread);
	}
	if (i >= 0) {
		add_turn(merge, (uint32_t)i);
		return 0;
	}
	if (i == -ECHILD) {
		refuse_child();
		return -1;
	}
	return PyErr_CheckSignals();
}

/* What popping has come to. Returns 0, or -1 and an exception. */
static int popped_from(struct merge *merge, uint32_t i, int popped)
{
	PyObject *result;

	if (popped == -ENOMEM) {
		merge->states[i] |= TO_POP;
		PyErr_NoMemory();
		return -1;
	}
	if (popped >= 0 || merge->states[i] & ENDED)
		return 0;
	merge->states[i] |= ENDED;
	merge->n_open--;
	result = PyObject_CallMethod((PyObject *)merge, "_end_of_stream", "O", PyTuple_GetItem(merge->streams, i));
	Py_XDECREF(result);
	return result ? 0 : -1;
}

/*
 * Whose turn it is to give a heap, which then is in its queue. -1: nobody will any more; or an exception is set. NOT_NOW:
 * nobody now, and it was not to wait. Between the look at a queue and the return nobody else can have come in.
 */
static int64_t whose_turn(struct merge *merge, bool wait)
{
	while (merge->n_turns || merge->n_open) {
		const uint32_t i = merge->turns[merge->first_turn];

		if (!merge->n_turns) {
			const int err = find_turn(merge, wait);

			if (err)
				return err;
		} else if (queue_of(merge, i)->n_heaps) {
			return i;
		} else if (merge->states[i] & TO_POP) {
			merge->states[i] &= (uint8_t)~TO_POP;
			if (popped_from(merge, i, fill(queue_of(merge, i), 1, merge->ahead, 0)))
				return -1;
		} else {
			end_turn(merge);
		}
	}
	return -1;
}

/* A pair, or NULL: none will come any more; or an exception is set. None: there is none now, and it was not to wait. */
static PyObject *give(struct merge *merge, bool wait)
{
	PyObject *pair = PyTuple_New(2), *heap;
	int64_t i = pair ? whose_turn(merge, wait) : -1;

	if (i < 0) {
		Py_XDECREF(pair);
		return i == NOT_NOW ? Py_NewRef(Py_None) : NULL;
	}
	heap = take_one(queue_of(merge, (uint32_t)i));
	if (!heap) {
		Py_DECREF(pair);
		return NULL;
	}
	PyTuple_SetItem(pair, 0, Py_NewRef(PyTuple_GetItem(merge->streams, (Py_ssize_t)i)));
	PyTuple_SetItem(pair, 1, heap);
	return pair;
}

static PyObject *merge_next(PyObject *self)
{
	return give((struct merge *)self, true);
}

PyDoc_STRVAR(merge_take_doc, "_take()\n--\n\n"
			     "The next pair, or None if there is none now. StopIteration if there will be none.");

static PyObject *merge_take(PyObject *self, PyObject *unused)
{
	PyObject *pair = give((struct merge *)self, false);

	(void)unused;
	if (!pair && !PyErr_Occurred())
		PyErr_SetNone(PyExc_StopIteration);
	return pair;
}

static PyObject *merge_ready(PyObject *self, void *unused)
{
	const struct merge *merge = (struct merge *)self;

	(void)unused;
	return PyBool_FromLong(merge->n_turns || !merge->n_open || xps_merge_ready(merge->core));
}

static PyObject *merge_fd(PyObject *self, void *unused)
{
	const int fd = xps_merge_fd(((struct merge *)self)->core);

	(void)unused;
	if (fd == -ECHILD)
		return refuse_child();
	if (fd < 0) {
		errno = -fd;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	return PyLong_FromLong(fd);
}

static int merge_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(((struct merge *)self)->streams);
	Py_VISIT(Py_TYPE(self));
	return 0;
}

/* Whether it was made, all but what `core` is. */
static bool merge_init(struct merge *merge, PyObject *streams, PyObject *queues, int ahead)
{
	const Py_ssize_t n = PyTuple_Size(queues);

	merge->streams = Py_NewRef(streams);
	merge->queues = Py_NewRef(queues);
	merge->ahead = ahead;
	merge->n = merge->n_open = (uint32_t)n;
	merge->turns = PyMem_Calloc((size_t)n, sizeof(merge->turns[0]));
	merge->states = PyMem_Calloc((size_t)n, sizeof(merge->states[0]));
	if (!merge->turns || !merge->states) {
		PyErr_NoMemory();
		return false;
	}
	return true;
}

static struct xps_merge *merge_core(const struct merge *merge)
{
	struct xps_stream **streams = PyMem_Calloc(merge->n, sizeof(struct xps_stream *));
	struct xps_merge *core;
	struct xps_fail fail;

	if (!streams) {
		PyErr_NoMemory();
		return NULL;
	}
	for (uint32_t i = 0; i < merge->n; i++)
		streams[i] = queue_of(merge, i)->stream;
	core = xps_merge_new(streams, merge->n, &fail);
	PyMem_Free(streams);
	if (!core)
		PyErr_SetString(fail.err == ENOMEM  ? PyExc_MemoryError
				: fail.err == EBUSY ? PyExc_ValueError
						    : PyExc_RuntimeError,
				fail.text);
	return core;
}

static bool are_queues(PyObject *queues)
{
	for (Py_ssize_t i = 0; i < PyTuple_Size(queues); i++)
		if (PyType_GetSlot(Py_TYPE(PyTuple_GetItem(queues, i)), Py_tp_iternext) != (void *)queue_next)
			return false;
	return true;
}

static PyObject *merge_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	PyObject *streams, *queues;
	struct merge *merge;
	int ahead;

	if (keywords) {
		PyErr_SetString(PyExc_TypeError, "HeapMerge() takes no keyword arguments");
		return NULL;
	}
	if (!PyArg_ParseTuple(args, "O!O!i:HeapMerge", &PyTuple_Type, &streams, &PyTuple_Type, &queues, &ahead))
		return NULL;
	if (!are_queues(queues)) {
		PyErr_SetString(PyExc_TypeError, "queues must be HeapQueues");
		return NULL;
	}
	if (PyTuple_Size(streams) != PyTuple_Size(queues) || PyTuple_Size(queues) > INT_MAX || ahead < 1) {
		PyErr_SetString(PyExc_ValueError, "there must be a queue for each stream, and ahead must be positive");
		return NULL;
	}
	merge = (struct merge *)PyType_GenericAlloc(type, 0);
	if (merge && merge_init(merge, streams, queues, ahead))
		merge->core = merge_core(merge);
	if (merge && !merge->core)
		Py_CLEAR(merge);
	return (PyObject *)merge;
}

static void merge_dealloc(PyObject *self)
{
	struct merge *merge = (struct merge *)self;

	PyObject_GC_UnTrack(self);
	xps_merge_free(merge->core);
	PyMem_Free(merge->turns);
	PyMem_Free(merge->states);
	Py_XDECREF(merge->streams);
	Py_XDECREF(merge->queues);
	delete_object(self);
}

PyDoc_STRVAR(merge_doc,
	     "HeapMerge(streams, queues, ahead)\n--\n\n"
	     "Heaps of several streams, in turn: pairs of a stream and a heap.\n\n"
	     "When a stream has ended its method ``_end_of_stream`` is called with it, and may raise. When all\n"
	     "have, iteration ends.\n\n"
	     "Parameters\n"
	     "----------\n"
	     "streams : tuple\n"
	     "    What is to be given with each heap.\n"
	     "queues : tuple of HeapQueue\n"
	     "    The queue of each of them.\n"
	     "ahead : int\n"
	     "    Heaps to pop at a time, at least 1.");

static PyMethodDef merge_methods[] = {
	{ "_take", merge_take, METH_NOARGS, merge_take_doc },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef merge_getters[] = {
	{ "_ready", merge_ready, NULL, "Whether it pays to call _take().", NULL },
	{ "_fd", merge_fd, NULL, "A descriptor that is readable when a stream has told of heaps, or of its end.",
	  NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot merge_slots[] = {
	{ Py_tp_doc, (void *)merge_doc },
	{ Py_tp_new, (void *)merge_new },
	{ Py_tp_dealloc, (void *)merge_dealloc },
	{ Py_tp_traverse, (void *)merge_traverse },
	{ Py_tp_iter, (void *)PyObject_SelfIter },
	{ Py_tp_iternext, (void *)merge_next },
	{ Py_tp_methods, merge_methods },
	{ Py_tp_getset, merge_getters },
	{ 0, NULL },
};

/* The streams' cycles are found through it and broken by others in them: what it has itself it needs to the end. */
static PyType_Spec merge_spec = {
	.name = "xdpspead._native.HeapMerge",
	.basicsize = sizeof(struct merge),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = merge_slots,
};

/* ---------------------------------------------------------------- the module */

/* Put a type into the module and, unless that is NULL, a reference to it into `type`. */
static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type)
{
	PyObject *object = PyType_FromModuleAndSpec(module, spec, NULL);
	int err = object ? PyModule_AddType(module, (PyTypeObject *)object) : -1;

	if (!err && type)
		*type = (PyTypeObject *)Py_NewRef(object);
	Py_XDECREF(object);
	return err;
}

/* What cffi made of the header is in a module of its own; its `ffi` and `lib` go into this one. */
static int add_from(PyObject *module, PyObject *binding, const char *name)
{
	PyObject *object = PyObject_GetAttrString(binding, name);
	int err = object ? PyModule_AddObjectRef(module, name, object) : -1;

	Py_XDECREF(object);
	return err;
}

static int module_exec(PyObject *module)
{
	struct module_state *state = PyModule_GetState(module);
	PyObject *binding = PyInit__cffi();
	int err = !binding || add_from(module, binding, "ffi") || add_from(module, binding, "lib") ||
		  add_type(module, &payload_spec, &state->payload_type) ||
		  add_type(module, &handle_spec, &state->handle_type) || add_type(module, &queue_spec, NULL) ||
		  add_type(module, &iterator_spec, NULL) || add_type(module, &merge_spec, NULL);

	Py_XDECREF(binding);
	return err ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
	struct module_state *state = PyModule_GetState(module);

	Py_VISIT((PyObject *)state->payload_type);
	Py_VISIT((PyObject *)state->handle_type);
	return 0;
}

static int module_clear(PyObject *module)
{
	struct module_state *state = PyModule_GetState(module);

	Py_CLEAR(state->payload_type);
	Py_CLEAR(state->handle_type);
	return 0;
}

static PyModuleDef_Slot module_slots[] = {
	{ Py_mod_exec, (void *)module_exec },
	{ 0, NULL },
};

static PyModuleDef module_definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_native",
	.m_doc = "The compiled binding.",
	.m_size = sizeof(struct module_state),
	.m_slots = module_slots,
	.m_traverse = module_traverse,
	.m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__native(void)
{
	return PyModuleDef_Init(&module_definition);
}
