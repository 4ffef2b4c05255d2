// SPDX-License-Identifier: MIT OR Apache-2.0
/* A histogram of the time between calls: bucket n of `between` counts 2^n to 2^(n+1)-1 nanoseconds. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define BUCKETS 64

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, __u64);
} between SEC(".maps");

/* When the last call was, in nanoseconds; 0 before the first. */
__u64 last;

static __always_inline __u32 log2_of(__u64 value)
{
	__u32 log2 = 0;

	if (value >> 32) { value >>= 32; log2 += 32; }
	if (value >> 16) { value >>= 16; log2 += 16; }
	if (value >> 8) { value >>= 8; log2 += 8; }
	if (value >> 4) { value >>= 4; log2 += 4; }
	if (value >> 2) { value >>= 2; log2 += 2; }
	if (value >> 1) { log2 += 1; }
	return log2;
}

SEC("fentry/workload_call")
int latency(void *ctx)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 before = last;
	__u64 *count;
	__u32 bucket;

	last = now;
	if (!before)
		return 0;
	bucket = log2_of(now - before);
	count = bpf_map_lookup_elem(&between, &bucket);
	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}
