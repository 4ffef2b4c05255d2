// SPDX-License-Identifier: MIT OR Apache-2.0
/* Calls a helper whose number nobody has: validation names the number. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

static long (*no_such_helper)(void) = (void *)9999;

SEC("fentry/workload_call")
int unknown_helper(void *ctx)
{
	return no_such_helper();
}
