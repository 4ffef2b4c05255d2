// SPDX-License-Identifier: MIT OR Apache-2.0
/* Reads slow memory, eight bytes from as far in as the first argument says; sleeps until they are brought in. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct KernelInfo;

struct KernelInfo___slow {
	__u64 slow;
} __attribute__((preserve_access_index));

extern const struct KernelInfo springboard_info __ksym;

/* `right` of `read` were what the second argument says; the others could not be read, or were something else. */
__u64 read, failed, right;

SEC("fentry.s/workload_call")
int BPF_PROG(page_in, __u64 offset, __u64 expected)
{
	const struct KernelInfo___slow *info = (const void *)&springboard_info;
	__u64 word = expected;

	if (bpf_copy_from_user(&word, sizeof(word), (const void *)(info->slow + offset))) {
		__sync_fetch_and_add(&failed, word == 0);
		return 0;
	}
	__sync_fetch_and_add(&read, 1);
	if (word == expected)
		__sync_fetch_and_add(&right, 1);
	return 0;
}
