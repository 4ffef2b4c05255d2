// SPDX-License-Identifier: MIT OR Apache-2.0
/* Prints each call's arguments. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("fentry/workload_call")
int BPF_PROG(printk, __u64 first, __u64 second)
{
	bpf_printk("cpu %d: workload_call(%lu, 0x%lx)", bpf_get_smp_processor_id(), first, second);
	return 0;
}
