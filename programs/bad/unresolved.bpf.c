// SPDX-License-Identifier: MIT OR Apache-2.0
/* Calls a function that nobody defines: loading names section, offset and symbol. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int defined_nowhere(int);

SEC("fentry/workload_call")
int unresolved(void *ctx)
{
	return defined_nowhere(1);
}
