// SPDX-License-Identifier: MIT OR Apache-2.0
/* Counts calls by task, and keeps who made them; goes through helpers that mask interrupts, walk the stack and look at the clock. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} by_task SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 64);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, 8 * sizeof(__u64));
} callers SEC(".maps");

/* All calls; those that found no room in the map; when the last one was. */
__u64 calls, no_room, last;

SEC("fentry/workload_call")
int tally(void *ctx)
{
	__u32 task = bpf_get_current_pid_tgid();
	__u64 *count = bpf_map_lookup_elem(&by_task, &task), none = 0;

	__sync_fetch_and_add(&calls, 1);
	if (!count) {
		bpf_map_update_elem(&by_task, &task, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&by_task, &task);
	}
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		__sync_fetch_and_add(&no_room, 1);
	bpf_get_stackid(ctx, &callers, 0);
	last = bpf_ktime_get_ns();
	return 0;
}
