// SPDX-License-Identifier: MIT OR Apache-2.0
/* Reads what the kernel keeps for each core: of the core that the call names, and of its own. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct PerCpu;

/* Only what is needed of it. */
struct PerCpu___needed {
	__u64 index;
	__u64 ticks;
	_Bool online;
} __attribute__((preserve_access_index));

extern const struct PerCpu springboard_cpu __ksym;

/* Of the core that was asked for, if there may be such a one. */
__u64 there, number, ticks, online;
/* Of the core that ran this, and its number by the helper. */
__u64 own, own_ticks, core;

SEC("fentry/workload_call")
int BPF_PROG(cores, __u64 asked)
{
	const struct PerCpu___needed *one = bpf_per_cpu_ptr(&springboard_cpu, asked);
	const struct PerCpu___needed *this = bpf_this_cpu_ptr(&springboard_cpu);

	there = 0;
	if (one) {
		there = 1;
		number = one->index;
		ticks = one->ticks;
		online = one->online;
	}
	own = this->index;
	own_ticks = this->ticks;
	core = bpf_get_smp_processor_id();
	return 0;
}
