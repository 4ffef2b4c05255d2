// SPDX-License-Identifier: MIT OR Apache-2.0
/* An array of maps that holds a pinned map from the start; pinned_inner_other.bpf.c has the same map in another one. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
};

struct inner first SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(__u32));
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_ARRAY);
		__uint(max_entries, 2);
		__type(key, __u32);
		__type(value, __u64);
	});
} outer SEC(".maps") = {
	.values = { [1] = (void *)&first },
};

SEC("fentry/workload_call")
__u64 BPF_PROG(add, __u64 slot, __u64 by)
{
	__u32 key = slot, one = 1;
	void *inner = bpf_map_lookup_elem(&outer, &key);
	__u64 *value;

	if (!inner)
		return -1;
	value = bpf_map_lookup_elem(inner, &one);
	if (!value)
		return -2;
	*value += by;
	return *value;
}
