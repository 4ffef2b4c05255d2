// SPDX-License-Identifier: MIT OR Apache-2.0
/* A program that goes on in another one, which the object puts into the program array. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

int second(__u64 *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(__u32));
	__array(values, int(__u64 *));
} programs SEC(".maps") = {
	.values = {
		[1] = (void *)&second,
	},
};

__u64 calls;

SEC("fentry/second")
int second(__u64 *ctx)
{
	calls += 10;
	return ctx[0] + 1;
}

SEC("fentry/first")
int first(__u64 *ctx)
{
	calls++;
	bpf_tail_call(ctx, &programs, 1);
	return -1;
}
