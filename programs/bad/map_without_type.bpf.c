// SPDX-License-Identifier: MIT OR Apache-2.0
/* A map whose definition lacks its type. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} untyped SEC(".maps");

SEC("fentry/workload_call")
int map_without_type(void *ctx)
{
	__u32 key = 0;

	return !bpf_map_lookup_elem(&untyped, &key);
}
