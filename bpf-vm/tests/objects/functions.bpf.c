// SPDX-License-Identifier: MIT OR Apache-2.0
/* Functions by address and by name: callbacks, aliases, weak, hidden and static ones, beside programs and elsewhere. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct sum {
	__u64 total, times;
};

static long add_index(__u32 index, struct sum *sum)
{
	sum->total += index;
	return 0;
}

/* Not first in its section, and one of two there. */
long stop_at_three(__u32 index, struct sum *sum)
{
	sum->times++;
	return index == 3;
}

__weak __noinline __u64 twice(__u64 value)
{
	/* An argument that no compiler sees through. */
	barrier_var(value);
	return 2 * value;
}

__hidden __noinline __u64 thrice(__u64 value)
{
	barrier_var(value);
	return 3 * value;
}

/* An alias; clang 19 crashes on the attribute of that name. */
extern __u64 also_thrice(__u64 value);
asm(".globl also_thrice\n.type also_thrice, @function\n.set also_thrice, thrice\n");

/* In a section of programs, and none. */
SEC("fentry/workload_call")
static __noinline __u64 beside(__u64 value)
{
	barrier_var(value);
	return value + 1;
}

static __noinline __u64 elsewhere(__u64 value) SEC("subprograms");
static __noinline __u64 elsewhere(__u64 value)
{
	barrier_var(value);
	return value + 10;
}

SEC("fentry/workload_call")
__u64 BPF_PROG(loops, __u64 first)
{
	struct sum sum = {};

	bpf_loop(first, add_index, &sum, 0);
	bpf_loop(100, stop_at_three, &sum, 0);
	return sum.total * 1000 + sum.times;
}

SEC("fentry/workload_call")
__u64 BPF_PROG(calls, __u64 first)
{
	return twice(first) + 100 * thrice(first) + 10000 * also_thrice(first) + beside(first) + elsewhere(first);
}
