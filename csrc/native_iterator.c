// SPDX-License-Identifier: Apache-2.0
/* Streams that are iterated over. */
#include "native.h"

#include <errno.h>
#include <structmember.h>

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
	if (!queue || !xps_is_heap_queue(queue)) {
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
static int wait_for_heaps(struct xps_heap_queue *queue, int ahead)
{
	struct xps_fail fail;

	while (!queue->n_heaps) {
		const int popped = xps_heap_queue_fill(queue, 1, ahead > 0 ? ahead : 1, XPS_SLICE_MS);

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
	struct xps_heap_queue *queue = (struct xps_heap_queue *)iterator->queue;
	PyObject *heap = NULL;
	int ready = 0;

	if (queue && queue->n_heaps)
		return xps_heap_queue_take(queue);
	if (queue) {
		Py_INCREF((PyObject *)queue); /* somebody may set another one meanwhile */
		ready = wait_for_heaps(queue, iterator->ahead);
		if (ready > 0)
			heap = xps_heap_queue_take(queue);
		Py_DECREF((PyObject *)queue);
	}
	return ready ? heap : PyObject_CallMethod(self, "_end_of_heaps", NULL);
}

static void iterator_dealloc(PyObject *self)
{
	Py_XDECREF(((struct iterator *)self)->queue);
	xps_delete_object(self);
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

PyType_Spec xps_heap_iterator_spec = {
	.name = "xdpspead._native.HeapIterator",
	.basicsize = sizeof(struct iterator),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
	.slots = iterator_slots,
};
