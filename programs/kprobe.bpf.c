// SPDX-License-Identifier: MIT OR Apache-2.0
/* Probes: at an instruction, with all registers, and when a function has returned. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} calls SEC(".maps");

struct seen {
	__u64 first;
	__u64 second;
	__u64 result;
	__u64 sp;
	__u64 pc;
	__u64 function;
};

/* What the probes that look saw last: 0 at the entry, 1 at the return. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct seen);
} seen SEC(".maps");

static __always_inline void add(void)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&calls, &key);

	if (value)
		*value += 1;
}

SEC("kprobe/workload_call")
int kprobe_empty(struct pt_regs *ctx)
{
	return 0;
}

SEC("kprobe/workload_call")
int kprobe_count(struct pt_regs *ctx)
{
	add();
	return 0;
}

SEC("kretprobe/workload_call")
int kretprobe_empty(struct pt_regs *ctx)
{
	return 0;
}

SEC("kretprobe/workload_call")
int kretprobe_count(struct pt_regs *ctx)
{
	add();
	return 0;
}

SEC("kprobe/workload_call")
int BPF_KPROBE(look, __u64 first, __u64 second)
{
	__u32 key = 0;
	struct seen *to = bpf_map_lookup_elem(&seen, &key);

	if (!to)
		return 0;
	to->first = first;
	to->second = second;
	to->sp = PT_REGS_SP(ctx);
	to->pc = PT_REGS_IP(ctx);
	to->function = bpf_get_func_ip(ctx);
	return 0;
}

SEC("kretprobe/workload_call")
int BPF_KRETPROBE(look_back, __u64 result)
{
	__u32 key = 1;
	struct seen *to = bpf_map_lookup_elem(&seen, &key);

	if (!to)
		return 0;
	to->result = result;
	to->sp = PT_REGS_SP(ctx);
	to->pc = PT_REGS_IP(ctx);
	to->function = bpf_get_func_ip(ctx);
	return 0;
}
