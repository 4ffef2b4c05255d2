// SPDX-License-Identifier: MIT OR Apache-2.0
/* Counts calls by a load and a store, under a lock that all cores share. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct counter {
	__u64 calls;
	struct bpf_spin_lock lock;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counter);
} shared SEC(".maps");

SEC("fentry/workload_call")
int BPF_PROG(locked)
{
	__u32 key = 0;
	struct counter *counter = bpf_map_lookup_elem(&shared, &key);

	if (!counter)
		return 0;
	bpf_spin_lock(&counter->lock);
	counter->calls++;
	bpf_spin_unlock(&counter->lock);
	return 0;
}
