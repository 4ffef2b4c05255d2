// SPDX-License-Identifier: MIT OR Apache-2.0
/* Defines a map as it was done before BTF: loading names the section and the way it is done now. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__u32 type, key_size, value_size, max_entries, map_flags;
} old_map SEC("maps") = { BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0 };

SEC("fentry/workload_call")
int legacy_map(void *ctx)
{
	__u32 key = 0;

	return !bpf_map_lookup_elem(&old_map, &key);
}
