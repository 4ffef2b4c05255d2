// SPDX-License-Identifier: MIT OR Apache-2.0
/* Programs on workload_call whose helper calls workload_call: turned away from themselves, and counted, on every way. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Calls workload_call(a, b), which returns 3a + b; -12 (ENOMEM) where the stack is too full for one more hit. */
extern __s64 springboard_workload_call(__u64 a, __u64 b) __ksym;

enum { RUNS, RIGHT, REFUSED, COUNTS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline void add(__u32 key)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &key);

	if (value)
		*value += 1;
}

/* Counts this run, and what came of the call from inside. */
static __always_inline __s64 call(__u64 a, __u64 b)
{
	__s64 result;

	add(RUNS);
	result = springboard_workload_call(a, b);
	if (result == 3 * a + b)
		add(RIGHT);
	if (result == -12)
		add(REFUSED);
	return result;
}

#define HOOK(section, name)                                                    \
	SEC(section "/workload_call")                                          \
	int name(void *ctx)                                                    \
	{                                                                      \
		call(2, 3);                                                    \
		return 0;                                                      \
	}

HOOK("fentry", at_entry)
HOOK("fentry.s", at_entry_sleepable)
HOOK("fexit", at_exit)
HOOK("fexit.s", at_exit_sleepable)
HOOK("fmod_ret", modify)
HOOK("fsession", session)
HOOK("kprobe", probe)
HOOK("kretprobe", probe_return)
HOOK("kprobe.multi", many)
HOOK("kretprobe.multi", many_return)

/* In its place: what it asks for by name while it runs is the function itself. */
SEC("freplace/workload_call")
__u64 replace(__u64 *ctx)
{
	return call(ctx[0], ctx[1]);
}

/* In the place of a function of rules.bpf.c, whose program calls it with what it was called with. */
SEC("freplace/rule")
__u64 rule(__u64 value)
{
	return call(value, 1);
}
