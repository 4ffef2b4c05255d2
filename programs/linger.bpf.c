// SPDX-License-Identifier: MIT OR Apache-2.0
/* Programs that tasks stay in before they ask a function of theirs; a program in replace_rule.bpf.c takes that function's place. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct KernelInfo;

struct KernelInfo___slow {
	__u64 slow;
} __attribute__((preserve_access_index));

extern const struct KernelInfo springboard_info __ksym;

/* How many came in; how many the function here answered, and how many another one. */
__u64 came, own, others;
/* Whoever goes round does so until this is set. */
volatile __u64 go;

/* Weak, so that the compiler believes nothing of what it does. */
__weak __noinline __u64 rule(__u64 value)
{
	return value + 1;
}

static __always_inline void ask(__u64 value)
{
	if (rule(value) == value + 1)
		__sync_fetch_and_add(&own, 1);
	else
		__sync_fetch_and_add(&others, 1);
}

/* Asleep until the first page of slow memory is there. */
SEC("fentry.s/workload_call")
int sleeps(__u64 *ctx)
{
	const struct KernelInfo___slow *info = (const void *)&springboard_info;
	__u64 word;

	__sync_fetch_and_add(&came, 1);
	bpf_copy_from_user(&word, sizeof(word), (const void *)info->slow);
	ask(ctx[0]);
	return 0;
}

/* Goes round. */
SEC("fentry/workload_call")
int runs(__u64 *ctx)
{
	__sync_fetch_and_add(&came, 1);
	while (!go)
		;
	ask(ctx[0]);
	return 0;
}
