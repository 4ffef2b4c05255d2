// SPDX-License-Identifier: MIT OR Apache-2.0
/* Writes a record a call into a ring buffer, which `map dump ring.events` reads. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct event {
	__u64 task, first, second;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

/* Calls for which there was no room. */
__u64 lost;

SEC("fentry/workload_call")
int BPF_PROG(ring, __u64 first, __u64 second)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		__sync_fetch_and_add(&lost, 1);
		return 0;
	}
	event->task = (__u32)bpf_get_current_pid_tgid();
	event->first = first;
	event->second = second;
	bpf_ringbuf_submit(event, 0);
	return 0;
}
