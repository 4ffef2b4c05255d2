// SPDX-License-Identifier: MIT OR Apache-2.0
/* Reads memory, and a string, from the address that is the first argument; the second is how many bytes, 16 at most. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define MOST 16

struct {
	char bytes[MOST];
	char string[MOST];
	__s64 result;
	__s64 length;
} probed;

SEC("fentry/workload_call")
int BPF_PROG(probe, const void *address, __u64 size)
{
	if (size > MOST)
		return 0;
	__builtin_memset(probed.bytes, 0xee, MOST);
	__builtin_memset(probed.string, 0xee, MOST);
	probed.result = bpf_probe_read_kernel(probed.bytes, size, address);
	probed.length = bpf_probe_read_kernel_str(probed.string, size, address);
	return 0;
}
