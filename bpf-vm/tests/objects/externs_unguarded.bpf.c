// SPDX-License-Identifier: MIT OR Apache-2.0
/* Calls a function that may be missing without asking. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern __u64 kernel_gone(__u64 a) __ksym __weak;

SEC("fentry/workload_call")
int unguarded(void *ctx)
{
	return kernel_gone(1);
}
