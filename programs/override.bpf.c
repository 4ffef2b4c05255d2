// SPDX-License-Identifier: MIT OR Apache-2.0
/* Has a function return something else, at once, if its first argument is unlucky. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Calls; what the helper said last. */
__u64 calls;
__s64 said;

SEC("kprobe/workload_call")
int override(struct pt_regs *ctx)
{
	calls++;
	if (PT_REGS_PARM1(ctx) == 13)
		said = bpf_override_return(ctx, 77);
	return 0;
}
