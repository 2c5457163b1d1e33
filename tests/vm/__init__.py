"""Tests in virtual machines: drivers with zero-copy, and kernels that lack what newer ones have.

``make test-vm`` boots small guests under QEMU, one after the other, and runs the package in them.
Nothing is installed on this machine and no interface of it is touched: kernels are downloaded into
a cache, and the two network cards of a guest are joined inside QEMU.

On this machine run, in this order: `packages` (what Debian has), `kernels` (one kernel and its
modules), `emulator` (QEMU), `image` (what the guest sees as its files), `plan` (which guests there
are), `cli` (the command). In the guest run: `init` (process 1), `network` (its two cards), `cases`
(what is tested), `traffic` and `umem` (what the cases are made of).
"""
