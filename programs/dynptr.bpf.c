// SPDX-License-Identifier: MIT OR Apache-2.0
/* Writes a record a call into a ring buffer, as long as the call says: `map dump dynptr.lines` reads them. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} lines SEC(".maps");

/* Of all records that were submitted, and of those that were given up. */
__u64 submitted, given_up;
/* Of the last call: what reserving and writing answered, and what was read back. */
__s64 reserved, written;
__u64 back;

/* A record of `size` bytes that ends with `last`; none if that is 0. */
SEC("fentry/workload_call")
int BPF_PROG(dynptr, __u64 size, __u64 last)
{
	struct bpf_dynptr line;
	__u64 *first;

	reserved = bpf_ringbuf_reserve_dynptr(&lines, size, 0, &line);
	first = bpf_dynptr_data(&line, 0, sizeof(*first));
	if (first)
		*first = size;
	written = bpf_dynptr_write(&line, size - sizeof(last), &last, sizeof(last), 0);
	back = 0;
	if (!written && last && !bpf_dynptr_read(&back, sizeof(back), &line, size - sizeof(last), 0)) {
		__sync_fetch_and_add(&submitted, 1);
		bpf_ringbuf_submit_dynptr(&line, 0);
	} else {
		__sync_fetch_and_add(&given_up, 1);
		bpf_ringbuf_discard_dynptr(&line, 0);
	}
	return 0;
}
