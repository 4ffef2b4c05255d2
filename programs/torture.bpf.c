// SPDX-License-Identifier: MIT OR Apache-2.0
/* What `cargo xtask torture` hooks in beside hooks in Rust: each program says at which place it was hit, which is its cookie, and by whom. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

extern __u64 springboard_torture_hit(__u64 place, __u64 who, __u64 replaced) __ksym;

/* When a function returns, its first argument, which says who calls, is gone. */
#define WHO_RUNS_HERE (~0ull)

/* torture_replace.bpf.c has another one, which takes its place now and then. */
__attribute__((noinline)) int mark(__u64 place, __u64 who)
{
	return springboard_torture_hit(place, who, 0) > 1;
}

#define HOOK(section, name, type, who)                                         \
	SEC(section "/torture_*")                                              \
	int name(type *ctx)                                                    \
	{                                                                      \
		mark(bpf_get_attach_cookie(ctx), who);                         \
		return 0;                                                      \
	}

HOOK("fentry", at_entry, __u64, ctx[0])
HOOK("fentry.s", at_entry_sleepable, __u64, ctx[0])
HOOK("fexit", at_exit, __u64, ctx[0])
HOOK("fexit.s", at_exit_sleepable, __u64, ctx[0])
HOOK("fsession", at_session, __u64, ctx[0])
HOOK("fmod_ret", at_modify, __u64, ctx[0])
HOOK("kprobe", at_probe, struct pt_regs, PT_REGS_PARM1(ctx))
HOOK("kretprobe", at_probe_return, struct pt_regs, WHO_RUNS_HERE)
HOOK("kprobe.multi", at_many, struct pt_regs, PT_REGS_PARM1(ctx))
HOOK("kretprobe.multi", at_many_return, struct pt_regs, WHO_RUNS_HERE)
