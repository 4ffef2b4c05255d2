// SPDX-License-Identifier: MIT OR Apache-2.0
/* Programs that are put on many functions at once, at their entry or their exit. */
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

static __always_inline void add(void)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&calls, &key);

	if (value)
		*value += 1;
}

SEC("kprobe.multi/workload_*")
int entry_empty(struct pt_regs *ctx)
{
	return 0;
}

SEC("kprobe.multi/workload_*")
int entry_count(struct pt_regs *ctx)
{
	add();
	return 0;
}

SEC("kretprobe.multi/workload_*")
int exit_empty(struct pt_regs *ctx)
{
	return 0;
}

SEC("kretprobe.multi/workload_*")
int exit_count(struct pt_regs *ctx)
{
	add();
	return 0;
}

/* What a hit was told: of each function the last one. */
struct seen {
	__u64 cookie;
	__u64 hits;
	__u64 first;
	__u64 second;
	__u64 sp;
	__u64 pc;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, struct seen);
} entries SEC(".maps"), exits SEC(".maps");

static __always_inline int note(void *map, struct pt_regs *ctx)
{
	__u64 function = bpf_get_func_ip(ctx);
	struct seen *before = bpf_map_lookup_elem(map, &function);
	struct seen now = {
		.cookie = bpf_get_attach_cookie(ctx),
		.hits = before ? before->hits + 1 : 1,
		.first = PT_REGS_PARM1(ctx),
		.second = PT_REGS_PARM2(ctx),
		.sp = PT_REGS_SP(ctx),
		.pc = PT_REGS_IP(ctx),
	};

	bpf_map_update_elem(map, &function, &now, BPF_ANY);
	return 0;
}

SEC("kprobe.multi/workload_*")
int entry_note(struct pt_regs *ctx)
{
	return note(&entries, ctx);
}

SEC("kretprobe.multi/workload_*")
int exit_note(struct pt_regs *ctx)
{
	return note(&exits, ctx);
}
