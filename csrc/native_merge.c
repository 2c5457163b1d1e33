// SPDX-License-Identifier: Apache-2.0
/* Several streams that are iterated over at once, in turn. */
#include "native.h"

#include <errno.h>

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

static struct xps_heap_queue *queue_of(const struct merge *merge, uint32_t i)
{
	return (struct xps_heap_queue *)PyTuple_GetItem(merge->queues, i);
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
		i = xps_merge_next(merge->core, XPS_SLICE_MS);
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
			if (popped_from(merge, i, xps_heap_queue_fill(queue_of(merge, i), 1, merge->ahead, 0)))
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
	heap = xps_heap_queue_take(queue_of(merge, (uint32_t)i));
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
		if (!xps_is_heap_queue(PyTuple_GetItem(queues, i)))
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
	xps_delete_object(self);
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
PyType_Spec xps_heap_merge_spec = {
	.name = "xdpspead._native.HeapMerge",
	.basicsize = sizeof(struct merge),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
	.slots = merge_slots,
};
