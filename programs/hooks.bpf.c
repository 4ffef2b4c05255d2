// SPDX-License-Identifier: MIT OR Apache-2.0
/* For each way into a program one that does nothing and one that counts, to be measured against each other. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>

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

HOOK("fentry", fentry)
HOOK("fexit", fexit)
HOOK("fmod_ret", fmod_ret)
HOOK("fsession", fsession)
HOOK("fentry.s", fentry_s)
HOOK("fexit.s", fexit_s)
HOOK("fmod_ret.s", fmod_ret_s)
HOOK("fsession.s", fsession_s)

/* Does nothing. Weak, so that the compiler believes nothing of what it does: programs in replace.bpf.c take its place. */
__weak __noinline __u64 answer(__u64 value)
{
	return 0;
}

SEC("fentry/workload_call")
int fentry_ask(__u64 *ctx)
{
	return answer(ctx[0]);
}
