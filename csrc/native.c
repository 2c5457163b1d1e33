// SPDX-License-Identifier: Apache-2.0
/* The module: what cffi makes of xdpspead.h, and the types of native.h. */
#include "native.h"

/* What cffi generates. */
PyMODINIT_FUNC PyInit__cffi(void);

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
	struct xps_native *state = PyModule_GetState(module);
	PyObject *binding = PyInit__cffi();
	int err = !binding || add_from(module, binding, "ffi") || add_from(module, binding, "lib") ||
		  add_type(module, &xps_heap_payload_spec, &state->payload_type) ||
		  add_type(module, &xps_heap_handle_spec, &state->handle_type) ||
		  add_type(module, &xps_heap_queue_spec, NULL) || add_type(module, &xps_heap_iterator_spec, NULL) ||
		  add_type(module, &xps_heap_merge_spec, NULL);

	Py_XDECREF(binding);
	return err ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
	struct xps_native *state = PyModule_GetState(module);

	Py_VISIT((PyObject *)state->payload_type);
	Py_VISIT((PyObject *)state->handle_type);
	return 0;
}

static int module_clear(PyObject *module)
{
	struct xps_native *state = PyModule_GetState(module);

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
	.m_size = sizeof(struct xps_native),
	.m_slots = module_slots,
	.m_traverse = module_traverse,
	.m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__native(void)
{
	return PyModuleDef_Init(&module_definition);
}
