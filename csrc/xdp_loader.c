// SPDX-License-Identifier: Apache-2.0
/* xdp_load.h by a library that lies beside ours, and is there for the time of a call. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "xdp_load.h"

static const char name[] = "_xdp_load.so";

static void say(char *said, size_t size)
{
	const char *why = dlerror();

	snprintf(said, size, "%s", why ? why : "unknown reason");
}

/* Open the library and find a function in it. NULL, and the reason in `said`. */
static void *open_library(const char *function, void **address, char *said, size_t size)
{
	char path[4096];
	const char *end;
	Dl_info ours;
	void *handle;

	if (!dladdr(name, &ours) || !ours.dli_fname)
		ours.dli_fname = "";
	end = strrchr(ours.dli_fname, '/');
	snprintf(path, sizeof(path), "%.*s%s", end ? (int)(end + 1 - ours.dli_fname) : 0, ours.dli_fname, name);
	handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	*address = handle ? dlsym(handle, function) : NULL;
	if (*address)
		return handle;
	say(said, size);
	if (handle)
		dlclose(handle);
	return NULL;
}

int xps_xdp_load(struct xps_xdp_loaded *loaded, uint32_t n_queues, enum xps_xdp_variant best, char *said, size_t size)
{
	int (*load)(struct xps_xdp_loaded *, uint32_t, enum xps_xdp_variant, char *, size_t);
	void *address, *handle = open_library("xps_xdp_load", &address, said, size);
	int err;

	if (!handle)
		return -ELIBACC;
	/* ISO C does not convert pointers to functions; POSIX has them alike. */
	memcpy(&load, &address, sizeof(load));
	err = load(loaded, n_queues, best, said, size);
	dlclose(handle);
	return err;
}

int xps_xdp_can_load(char *said, size_t size)
{
	void *address, *handle = open_library("xps_xdp_load", &address, said, size);

	if (!handle)
		return -ELIBACC;
	dlclose(handle);
	return 0;
}

uint32_t xps_xdp_attached(int ifindex)
{
	uint32_t (*attached)(int);
	char said[256];
	void *address, *handle = open_library("xps_xdp_attached", &address, said, sizeof(said));
	uint32_t id;

	if (!handle)
		return 0;
	memcpy(&attached, &address, sizeof(attached));
	id = attached(ifindex);
	dlclose(handle);
	return id;
}
