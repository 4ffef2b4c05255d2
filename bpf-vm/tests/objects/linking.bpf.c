// SPDX-License-Identifier: MIT OR Apache-2.0
/* What linking has to get right: two programs in a section, functions they share, one of each data section. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

const volatile __u64 wanted = 3;
__u64 calls;
__u64 factor = 5;
__u32 elsewhere[4] SEC(".data.elsewhere") = { 1, 2, 3, 4 };
static __u64 sum;

struct pair {
	__u64 a, b;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	__uint(value_size, 8);
} first_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct pair);
} second_map SEC(".maps");

static __noinline __u64 add(__u64 value)
{
	sum += value;
	return sum;
}

/* Global and calls the static one, so that one program needs both, the other only the static one. */
__noinline __u64 scale(__u64 value)
{
	return add(value) * factor;
}

SEC("fentry/workload_call")
__u64 BPF_PROG(both, __u64 first, __u64 second)
{
	__u32 key = 1;
	__u64 *value = bpf_map_lookup_elem(&second_map, &key);

	if (value)
		value[1] = elsewhere[2];
	calls++;
	if (first != wanted)
		return 0;
	return scale(second) + add(0);
}

SEC("fentry/workload_call")
__u64 BPF_PROG(one, __u64 first)
{
	__u32 key = 3;
	__u64 value = 7;

	bpf_map_update_elem(&first_map, &key, &value, BPF_ANY);
	return add(first);
}

SEC("fexit.s/workload_other")
__u64 BPF_PROG(none)
{
	return wanted;
}
