// SPDX-License-Identifier: MIT OR Apache-2.0
/* Has a variable that holds an address: loading names section, offset and symbol. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

int variable;
int *pointer = &variable;

SEC("fentry/workload_call")
int data_address(void *ctx)
{
	return *pointer;
}
