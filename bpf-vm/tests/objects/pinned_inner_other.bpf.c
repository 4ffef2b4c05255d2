// SPDX-License-Identifier: MIT OR Apache-2.0
/* A hash of maps that holds the pinned map of pinned_inner.bpf.c from the start. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} first SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(max_entries, 2);
		__type(key, __u32);
		__type(value, __u64);
	});
} others SEC(".maps") = {
	.values = { (void *)&first },
};

SEC("fentry/workload_call")
__u64 BPF_PROG(look, __u64 slot)
{
	__u32 key = slot, one = 1;
	void *inner = bpf_map_lookup_elem(&others, &key);
	__u64 *value;

	if (!inner)
		return -1;
	value = bpf_map_lookup_elem(inner, &one);
	return value ? *value : -2;
}
