// SPDX-License-Identifier: MIT OR Apache-2.0
/* Calls a kernel function that no kernel has: loading names section, offset and function. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_no_such_kfunc(int value) __ksym;

SEC("fentry/workload_call")
int missing_kernel_function(void *ctx)
{
	return bpf_no_such_kfunc(1);
}
