// SPDX-License-Identifier: Apache-2.0
/* The queue of heaps on their way from the ring to the user. */
#include "native.h"

#include <errno.h>

#include "bits.h"

/* What one call popped; those before `next` have been handed out. */
struct xps_heap_batch {
	struct xps_heap_batch *after;
	int next, n;
	struct xps_heap *heaps[];
};

int xps_heap_queue_fill(struct xps_heap_queue *queue, int n, int ahead, int timeout_ms)
{
	const int most = ahead ? ahead : n;
	struct xps_heap_batch *batch = PyMem_Malloc(sizeof(*batch) + (size_t)most * sizeof(batch->heaps[0]));
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
static struct xps_heap *remove_first(struct xps_heap_queue *queue)
{
	struct xps_heap_batch *batch = queue->first;
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
static PyObject *make_handle(const struct xps_heap_queue *queue, const struct xps_heap *heap)
{
	PyObject *handle = PyType_GenericAlloc(queue->kinds[heap->flags & XPS_HEAP_CONTIGUOUS], 0);

	if (handle)
		((struct xps_heap_handle *)handle)->bug_compat = queue->bug_compat;
	return handle;
}

/* Put handles for the first `n` heaps into a list of as many, without giving them those yet. */
static bool make_handles(const struct xps_heap_queue *queue, PyObject *list, Py_ssize_t n)
{
	const struct xps_heap_batch *batch = queue->first;
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
static PyObject *take_list(struct xps_heap_queue *queue, Py_ssize_t n)
{
	/* It could run anybody's code between a look at the queue and what comes of it. */
	const int collecting = PyGC_Disable();
	PyObject *list;

	n = n < queue->n_heaps ? n : queue->n_heaps;
	list = PyList_New(n);
	if (list && !make_handles(queue, list, n))
		Py_CLEAR(list);
	for (Py_ssize_t i = 0; list && i < n; i++)
		((struct xps_heap_handle *)PyList_GetItem(list, i))->heap = remove_first(queue);
	if (collecting)
		PyGC_Enable();
	return list;
}

PyObject *xps_heap_queue_take(struct xps_heap_queue *queue)
{
	const int collecting = PyGC_Disable(); /* as above */
	PyObject *handle = NULL;

	if (queue->n_heaps)
		handle = make_handle(queue, queue->first->heaps[queue->first->next]);
	if (handle)
		((struct xps_heap_handle *)handle)->heap = remove_first(queue);
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
	struct xps_heap_queue *queue = (struct xps_heap_queue *)self;
	PyObject *result = NULL, *code, *heaps;
	int n, ahead, timeout_ms, popped = 0;

	if (!PyArg_ParseTuple(args, "iii:take", &n, &ahead, &timeout_ms))
		return NULL;
	if (n < 1 || ahead < 0) {
		PyErr_SetString(PyExc_ValueError, "there is no such number of heaps");
		return NULL;
	}
	if (!queue->n_heaps)
		popped = xps_heap_queue_fill(queue, n, ahead, timeout_ms);
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
	return xps_heap_queue_take((struct xps_heap_queue *)self);
}

bool xps_is_heap_queue(PyObject *object)
{
	return PyType_GetSlot(Py_TYPE(object), Py_tp_iternext) == (void *)queue_next;
}

static Py_ssize_t queue_length(PyObject *self)
{
	return ((struct xps_heap_queue *)self)->n_heaps;
}

static PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	const struct xps_native *state = PyType_GetModuleState(type);
	PyObject *owner, *memory, *incomplete, *whole;
	unsigned long bug_compat;
	unsigned long long address;
	struct xps_heap_queue *queue;

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
	queue = (struct xps_heap_queue *)PyType_GenericAlloc(type, 0);
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
	struct xps_heap_queue *queue = (struct xps_heap_queue *)self;

	while (queue->n_heaps)
		xps_heap_free_with_gil(remove_first(queue));
	Py_XDECREF(queue->owner);
	Py_XDECREF(queue->memory);
	Py_XDECREF((PyObject *)queue->kinds[0]);
	Py_XDECREF((PyObject *)queue->kinds[1]);
	xps_delete_object(self);
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

PyType_Spec xps_heap_queue_spec = {
	.name = "xdpspead._native.HeapQueue",
	.basicsize = sizeof(struct xps_heap_queue),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = queue_slots,
};
