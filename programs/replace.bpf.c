// SPDX-License-Identifier: MIT OR Apache-2.0
/* Programs in place of kernel functions, some of which call what they stand in for, and of a function of hooks.bpf.c. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* The function that the program stands in for, with the arguments in ctx: what it returns. */
extern __u64 springboard_call_original(void *ctx) __ksym;

__u64 runs;

SEC("freplace/workload_call")
int empty(void *ctx)
{
	return 0;
}

SEC("freplace/workload_call")
int count(void *ctx)
{
	runs += 1;
	return 0;
}

SEC("freplace/answer")
__u64 answer_empty(__u64 value)
{
	return 0;
}

SEC("freplace/answer")
__u64 answer_count(__u64 value)
{
	runs += 1;
	return 0;
}

SEC("freplace/workload_call")
__u64 product(__u64 *ctx)
{
	runs += 1;
	return ctx[0] * ctx[1];
}

/* workload_call may block, so only a program that may too calls it. */
SEC("freplace.s/workload_call")
__u64 twice(void *ctx)
{
	runs += 1;
	return 2 * springboard_call_original(ctx);
}

SEC("freplace.s/workload_twelve")
__u64 twelve(void *ctx)
{
	return springboard_call_original(ctx) + 1;
}

SEC("freplace/workload_encode")
__u64 encode(__u64 *ctx)
{
	runs += 1;
	return springboard_call_original(ctx) ^ ctx[1];
}

/* Refused: it would block in a program that must not. */
SEC("freplace/workload_blocks")
__u64 blocks(void *ctx)
{
	return springboard_call_original(ctx);
}

/* Refused: it stands in for nothing. */
SEC("fentry/workload_call")
int beside(void *ctx)
{
	return springboard_call_original(ctx);
}
