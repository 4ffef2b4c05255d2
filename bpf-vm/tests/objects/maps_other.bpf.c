// SPDX-License-Identifier: MIT OR Apache-2.0
/* Shares a map with maps.bpf.c by its name. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
} shared SEC(".maps");

SEC("fentry/workload_call")
__u64 BPF_PROG(look, __u64 key)
{
	__u32 short_key = key;
	__u64 *value = bpf_map_lookup_elem(&shared, &short_key);

	return value ? *value : -1;
}
