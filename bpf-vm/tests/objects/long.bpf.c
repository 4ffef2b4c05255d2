// SPDX-License-Identifier: MIT OR Apache-2.0
/* Four programs that call one function of 300,000 instructions: more than an object may have together. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

static __noinline int long_function(int value)
{
	asm volatile(".rept 300000\n%0 += 1\n.endr" : "+r"(value));
	return value;
}

#define PROGRAM(name) \
	SEC("fentry/workload_call") int name(void *ctx) { return long_function(1); }

PROGRAM(first)
PROGRAM(second)
PROGRAM(third)
PROGRAM(fourth)
