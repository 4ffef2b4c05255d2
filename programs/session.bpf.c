// SPDX-License-Identifier: MIT OR Apache-2.0
/* One program at a function's entry and exit: what the entry keeps, the exit finds. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

extern _Bool bpf_session_is_return(void *ctx) __ksym;
extern __u64 *bpf_session_cookie(void *ctx) __ksym;

__u64 entries, exits, matched;

SEC("fsession/workload_call")
int session(__u64 *ctx)
{
	__u64 *kept = bpf_session_cookie(ctx);

	if (!bpf_session_is_return(ctx)) {
		entries += 1;
		*kept = 3 * ctx[0] + ctx[1];
		return 0;
	}
	exits += 1;
	if (*kept == ctx[2])
		matched += 1;
	return 0;
}
