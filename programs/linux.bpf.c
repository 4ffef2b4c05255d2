// SPDX-License-Identifier: MIT OR Apache-2.0
/* Programs that get registers: for each way into one that does nothing, one that counts, one that notes what it got. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

/* Of the last hit: two arguments, the result. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

static __always_inline void add(void)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&hits, &key);

	if (value)
		*value += 1;
}

static __always_inline void note(__u32 key, __u64 what)
{
	bpf_map_update_elem(&seen, &key, &what, BPF_ANY);
}

#define HOOK(section, name)                                                    \
	SEC(section "/workload_call")                                          \
	int name##_empty(void *ctx)                                            \
	{                                                                      \
		return 0;                                                      \
	}                                                                      \
	SEC(section "/workload_call")                                          \
	int name##_count(void *ctx)                                            \
	{                                                                      \
		add();                                                         \
		return 0;                                                      \
	}

HOOK("kprobe.multi", entry)
HOOK("kretprobe.multi", exit)

SEC("kprobe.multi/workload_call")
int entry_note(struct pt_regs *ctx)
{
	note(0, PT_REGS_PARM1(ctx));
	note(1, PT_REGS_PARM2(ctx));
	return 0;
}

SEC("kretprobe.multi/workload_call")
int exit_note(struct pt_regs *ctx)
{
	note(2, PT_REGS_RC(ctx));
	return 0;
}
