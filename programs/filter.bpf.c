// SPDX-License-Identifier: MIT OR Apache-2.0
/* Counts only the calls whose first argument is the one wanted; a loader may set `wanted` before it loads. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

const volatile __u64 wanted = 42;
__u64 matched;

SEC("fentry/workload_call")
int BPF_PROG(filter, __u64 first, __u64 second)
{
	if (first == wanted)
		matched++;
	return 0;
}
