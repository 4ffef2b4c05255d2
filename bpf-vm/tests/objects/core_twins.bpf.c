// SPDX-License-Identifier: MIT OR Apache-2.0
/* A kernel with two types of one name. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("fentry/workload_call")
int first(void *ctx)
{
	static volatile struct twin {
		int x;
	} twin;

	return twin.x;
}

SEC("fentry/workload_call")
int second(void *ctx)
{
	static volatile struct twin {
		int other;
		int x;
	} twin;

	return twin.x;
}
