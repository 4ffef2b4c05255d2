// SPDX-License-Identifier: MIT OR Apache-2.0
/* A program that asks a function of its own what to do; programs in replace_rule.bpf.c take that function's place. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

__u64 calls, last;

/* Weak, so that the compiler believes nothing of what it does. */
__weak __noinline __u64 rule(__u64 value)
{
	return value + 1;
}

static __noinline __u64 fixed(__u64 value)
{
	barrier_var(value);
	return 2 * value;
}

SEC("fentry/workload_call")
int ruled(__u64 *ctx)
{
	calls += 1;
	last = rule(ctx[0]) + fixed(ctx[1]);
	return 0;
}
