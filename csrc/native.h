/* SPDX-License-Identifier: Apache-2.0 */
/*
 * native - what the files of the Python module `_native` share: heaps as Python objects.
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
#pragma once

#include <Python.h>
#include <stdbool.h>

#include "xdpspead.h"

/* Whoever waits looks whether a signal came at least this often, ms: it may come to another thread. */
#define XPS_SLICE_MS 200

extern PyType_Spec xps_heap_payload_spec, xps_heap_handle_spec, xps_heap_queue_spec, xps_heap_iterator_spec,
	xps_heap_merge_spec;

/* The module's types that others are made with. */
struct xps_native {
	PyTypeObject *handle_type, *payload_type;
};

/* A heap for the user. */
struct xps_heap_handle {
	PyObject object;
	struct xps_heap *heap; /* NULL only while nobody else has the handle yet */
	PyObject *weak_references;
	unsigned long bug_compat;
};

struct xps_heap_batch;

/* Heaps that were popped and handed to nobody. */
struct xps_heap_queue {
	PyObject object;
	PyObject *owner;  /* keeps the stream */
	PyObject *memory; /* that the stream reads */
	struct xps_stream *stream;
	PyTypeObject *kinds[2]; /* of incomplete heaps and of whole ones */
	unsigned long bug_compat;
	struct xps_heap_batch *first, *last; /* none of them empty */
	Py_ssize_t n_heaps;
};

/* Free an object that has nothing left. */
static inline void xps_delete_object(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

/* Free a heap, which may be NULL, and let the GIL go if that takes long. */
void xps_heap_free_with_gil(struct xps_heap *heap);

bool xps_is_heap_queue(PyObject *object);
/*
 * Pop `n` heaps, or `ahead` if that is not 0, to the end of the queue. Returns what popping does, or -ENOMEM. The GIL is
 * let go to wait, and only then.
 */
int xps_heap_queue_fill(struct xps_heap_queue *queue, int n, int ahead, int timeout_ms);
/* The first heap in the queue, as an object. NULL: there is none, or no memory. */
PyObject *xps_heap_queue_take(struct xps_heap_queue *queue);
