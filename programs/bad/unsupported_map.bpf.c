// SPDX-License-Identifier: MIT OR Apache-2.0
/* Defines a map of a kind that has no business here: creating it names map and kind. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

SEC("fentry/workload_call")
int unsupported_map(void *ctx)
{
	__u32 key = 0;

	return !bpf_map_lookup_elem(&sockets, &key);
}
