// SPDX-License-Identifier: MIT OR Apache-2.0
/* Notes all arguments of a function that has six, and what it returned. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

__u64 first, last, result;

SEC("fexit/workload_six")
int BPF_PROG(six, __u64 a, __u64 b, __u64 c, __u64 d, __u64 e, __u64 f, __u64 returned)
{
	first = a;
	last = f;
	result = returned;
	return 0;
}
