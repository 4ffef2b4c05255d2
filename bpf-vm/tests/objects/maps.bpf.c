// SPDX-License-Identifier: MIT OR Apache-2.0
/* Maps that hold maps and programs from the start, and one that objects share. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
};

struct inner inner_one SEC(".maps");
struct inner inner_two SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__uint(key_size, sizeof(__u32));
	__array(values, struct inner);
} by_index SEC(".maps") = {
	.values = { [1] = &inner_one, [3] = &inner_two },
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} by_key SEC(".maps") = {
	.values = { &inner_two },
};

/* Filled at run time. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u64);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, 8);
		__type(key, __u32);
		__type(value, __u32);
	});
} later SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(numa_node, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
} shared SEC(".maps");

int target_two(void *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} jumps SEC(".maps") = {
	.values = { [2] = (void *)&target_two },
};

static __u64 seen;

SEC("fentry/workload_call")
__u64 BPF_PROG(count, __u64 index, __u64 by)
{
	__u32 key = index, zero = 0;
	void *inner = bpf_map_lookup_elem(&by_index, &key);
	__u64 *value;

	if (!inner)
		return 1;
	value = bpf_map_lookup_elem(inner, &zero);
	if (!value)
		return 2;
	*value += by;
	inner = bpf_map_lookup_elem(&by_key, &zero);
	if (!inner)
		return 3;
	value = bpf_map_lookup_elem(inner, &zero);
	return value ? 100 + *value : 4;
}

SEC("fentry/workload_call")
__u64 BPF_PROG(share, __u64 key, __u64 value)
{
	__u32 short_key = key;

	bpf_map_update_elem(&shared, &short_key, &value, BPF_ANY);
	return 0;
}

SEC("fentry/workload_call")
int target_two(void *ctx)
{
	seen += 1;
	return 200 + seen;
}

SEC("fentry/workload_call")
int jump(void *ctx)
{
	seen += 10;
	bpf_tail_call_static(ctx, &jumps, 2);
	return -1;
}
