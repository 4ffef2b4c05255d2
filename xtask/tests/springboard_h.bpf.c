// SPDX-License-Identifier: MIT OR Apache-2.0
/* What libbpf's tracing macros need of springboard.h, and its types: compiled by every clang, not run. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct Extent);
} extents SEC(".maps");

SEC("fentry/workload_struct")
int BPF_PROG(arguments, struct Request *request, __u32 scale)
{
	return request->kind == RequestKind_Write && request->extent.length > scale;
}

SEC("fexit/workload_struct")
int BPF_PROG(result, struct Request *request, __u32 scale, __u64 result)
{
	return BPF_CORE_READ(request, task, id) == result && bpf_core_field_exists(request->priority);
}

SEC("kprobe/workload_call")
int BPF_KPROBE(registers, __u64 a, __u64 b)
{
	bpf_printk("%lx: %lu %lu", PT_REGS_IP(ctx), a, b);
	return PT_REGS_PARM3(ctx) + PT_REGS_SP(ctx);
}

SEC("kretprobe/workload_call")
int BPF_KRETPROBE(returned, __u64 value)
{
	struct Extent extent = { .length = value };
	__u32 key = bpf_core_type_size(struct Task);

	return bpf_map_update_elem(&extents, &key, &extent, BPF_NOEXIST);
}
