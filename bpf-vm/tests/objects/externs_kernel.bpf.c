// SPDX-License-Identifier: MIT OR Apache-2.0
/* The kernel's side of externs.bpf.c: what its BTF has of them. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct clock {
	__u32 padding;
	__u32 ticks;
	__u64 base;
};

struct clock kernel_clock = { 1, 2, 3 };

__u64 kernel_add(__u64 a, __u64 b)
{
	return a + b;
}
