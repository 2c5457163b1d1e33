// SPDX-License-Identifier: Apache-2.0
/* Payloads that arrays keep alive, and heaps for the user. */
#include "native.h"

#include <structmember.h>

#include "bits.h"
#include "packet.h"

/* Giving back more than this may take longer than it takes to let the GIL go and get it again. */
#define MUCH_MEMORY (UINT64_C(1) << 20)
/* Items for which there is room on the stack. */
#define FEW_ITEMS 64

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
	xps_delete_object(self);
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

PyType_Spec xps_heap_payload_spec = {
	.name = "xdpspead._native.HeapPayload",
	.basicsize = sizeof(struct payload),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = payload_slots,
};

/* ---------------------------------------------------------------- heaps */

static const struct xps_heap *heap_of(PyObject *handle)
{
	return ((struct xps_heap_handle *)handle)->heap;
}

void xps_heap_free_with_gil(struct xps_heap *heap)
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
	struct xps_heap_handle *handle = (struct xps_heap_handle *)self;

	if (handle->weak_references)
		PyObject_ClearWeakRefs(self);
	xps_heap_free_with_gil(handle->heap);
	xps_delete_object(self);
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
	return PyLong_FromUnsignedLong(((struct xps_heap_handle *)self)->bug_compat);
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
	const struct xps_native *state = PyType_GetModuleState(type);
	struct xps_heap *heap = ((struct xps_heap_handle *)self)->heap;
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
	{ "__weaklistoffset__", T_PYSSIZET, offsetof(struct xps_heap_handle, weak_references), READONLY, NULL },
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

PyType_Spec xps_heap_handle_spec = {
	.name = "xdpspead._native.HeapHandle",
	.basicsize = sizeof(struct xps_heap_handle),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = handle_slots,
};
