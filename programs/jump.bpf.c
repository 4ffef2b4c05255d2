// SPDX-License-Identifier: MIT OR Apache-2.0
/* Goes on in another program, which is in a program array from the start. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

__u64 jumped, arrived, cookie;

int arrive(void *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} targets SEC(".maps") = {
	.values = { [1] = (void *)&arrive },
};

SEC("fentry/workload_six")
int arrive(void *ctx)
{
	arrived++;
	cookie = bpf_get_attach_cookie(ctx); /* of the program that came here */
	return 0;
}

SEC("fentry/workload_call")
int jump(void *ctx)
{
	jumped++;
	bpf_tail_call(ctx, &targets, 1);
	return 0;
}
