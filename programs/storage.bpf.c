// SPDX-License-Identifier: MIT OR Apache-2.0
/* Counts calls in a word that each task has of its own, and that is gone with it. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} own SEC(".maps");

/* Calls; those of a task that had a word already; those for which there was no word. */
__u64 calls, again, no_room;

SEC("fentry/workload_call")
int storage(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	__u64 *count = bpf_task_storage_get(&own, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	__sync_fetch_and_add(&calls, 1);
	if (!count) {
		__sync_fetch_and_add(&no_room, 1);
		return 0;
	}
	if (*count)
		__sync_fetch_and_add(&again, 1);
	*count += 1;
	return 0;
}
