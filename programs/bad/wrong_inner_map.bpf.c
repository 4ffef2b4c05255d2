// SPDX-License-Identifier: MIT OR Apache-2.0
/* Puts a map into another one that takes different ones: loading names both. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} narrow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(__u32));
	__array(values, struct inner);
} outer SEC(".maps") = {
	.values = { [1] = (void *)&narrow },
};

SEC("fentry/workload_call")
int wrong_inner_map(void *ctx)
{
	__u32 key = 0;

	return !bpf_map_lookup_elem(&outer, &key);
}
