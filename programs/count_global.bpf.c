// SPDX-License-Identifier: MIT OR Apache-2.0
/* Counts calls in a global variable. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

__u64 calls;

SEC("fentry/workload_call")
int count_global(void *ctx)
{
	calls++;
	return 0;
}
