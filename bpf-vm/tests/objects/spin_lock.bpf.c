// SPDX-License-Identifier: MIT OR Apache-2.0
/* Updates of values with a lock, while it is held. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct value {
	__u64 number;
	__u32 before;
	struct bpf_spin_lock lock;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct value);
} locked SEC(".maps");

SEC("fentry/workload_call")
int held(void *ctx)
{
	struct value new = { .number = 5 };
	__u32 key = 0, before, after;
	struct value *value = bpf_map_lookup_elem(&locked, &key);

	if (!value)
		return -1;
	bpf_spin_lock(&value->lock);
	before = *(volatile __u32 *)&value->lock;
	bpf_map_update_elem(&locked, &key, &new, BPF_ANY);
	after = *(volatile __u32 *)&value->lock;
	bpf_spin_unlock(&value->lock);
	if (!before || before != after || *(volatile __u32 *)&value->lock)
		return -2;
	/* BPF_F_LOCK is not known. */
	if (bpf_map_update_elem(&locked, &key, &new, BPF_F_LOCK) != -22)
		return -3;
	return value->number;
}

char _license[] SEC("license") = "GPL";
