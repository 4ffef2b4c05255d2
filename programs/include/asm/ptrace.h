/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * arm64's registers as a kprobe program sees them: x0-x30, sp, pc, pstate, eight bytes each.
 *
 * <bpf/bpf_tracing.h> reads arguments and return values through this layout when it is compiled with
 * -D__TARGET_ARCH_arm64 (BPF_KPROBE, BPF_KRETPROBE, PT_REGS_PARM1, ...).
 */
#ifndef SPRINGBOARD_ASM_PTRACE_H
#define SPRINGBOARD_ASM_PTRACE_H

#include <asm/types.h>

struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};

#endif
