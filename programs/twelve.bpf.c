// SPDX-License-Identifier: MIT OR Apache-2.0
/* Notes all arguments of a function that has twelve, four of them on the stack, and what it returned. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

__u64 seen[13];

/* BPF_PROG names at most twelve words; what was returned lies behind them. */
SEC("fexit/workload_twelve")
int BPF_PROG(twelve, __u64 a, __u64 b, __u64 c, __u64 d, __u64 e, __u64 f, __u64 g, __u64 h, __u64 i,
	     __u64 j, __u64 k, __u64 l)
{
	seen[0] = a;
	seen[1] = b;
	seen[2] = c;
	seen[3] = d;
	seen[4] = e;
	seen[5] = f;
	seen[6] = g;
	seen[7] = h;
	seen[8] = i;
	seen[9] = j;
	seen[10] = k;
	seen[11] = l;
	seen[12] = ctx[12];
	return 0;
}
