// SPDX-License-Identifier: MIT OR Apache-2.0
/* Counts calls on each core by itself, with no atomics: element 1 of a per-CPU array. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct seen {
	__u64 calls;
	__u64 first_arguments;
	__u64 core;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct seen);
} by_core SEC(".maps");

SEC("fentry/workload_call")
int BPF_PROG(percore, __u64 first)
{
	__u32 key = 1;
	struct seen *own = bpf_map_lookup_elem(&by_core, &key);

	if (own) {
		own->calls += 1;
		own->first_arguments += first;
		own->core = bpf_get_smp_processor_id();
	}
	return 0;
}
