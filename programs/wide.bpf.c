// SPDX-License-Identifier: MIT OR Apache-2.0
/* At both ends of a function that returns a struct in memory, whose address is in x8: what arrives there of its arguments. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

__u64 runs, first, second;

static __always_inline int note(__u64 a, __u64 b)
{
	runs += 1;
	first = a;
	second = b;
	return 0;
}

SEC("fentry/workload_wide")
int BPF_PROG(wide_entry, __u64 a, __u64 b)
{
	return note(a, b);
}

SEC("fexit/workload_wide")
int BPF_PROG(wide_exit, __u64 a, __u64 b)
{
	return note(a, b);
}

SEC("fsession/workload_wide")
int BPF_PROG(wide_session, __u64 a, __u64 b)
{
	return note(a, b);
}
