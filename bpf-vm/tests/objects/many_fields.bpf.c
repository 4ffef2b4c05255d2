// SPDX-License-Identifier: MIT OR Apache-2.0
/* A map's struct with more members than a map can have fields. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define EIGHT(n) \
	int *n##0; int *n##1; int *n##2; int *n##3; int *n##4; int *n##5; int *n##6; int *n##7;

struct {
	EIGHT(a) EIGHT(b) EIGHT(c) EIGHT(d) EIGHT(e) EIGHT(f) EIGHT(g) EIGHT(h)
	__uint(type, BPF_MAP_TYPE_ARRAY);
} wide SEC(".maps");

SEC("fentry/workload_call")
int many_fields(void *ctx)
{
	__u32 key = 0;

	return !bpf_map_lookup_elem(&wide, &key);
}

char _license[] SEC("license") = "GPL";
