/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * springboard.h: what a BPF program in C may know of the kernel. Written by `cargo xtask btf --header FILE`.
 *
 * Include it first, then <bpf/bpf_helpers.h>, <bpf/bpf_tracing.h> and <bpf/bpf_core_read.h>; it stands for <linux/bpf.h>,
 * <linux/types.h> and <asm/ptrace.h>, so that the same program compiles on a PC of any architecture.
 */
#ifndef SPRINGBOARD_H
#define SPRINGBOARD_H

#ifndef __TARGET_ARCH_arm64
#define __TARGET_ARCH_arm64
#endif

#ifndef _LINUX_TYPES_H
#define _LINUX_TYPES_H
typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __le16;
typedef __u16 __be16;
typedef __u32 __le32;
typedef __u32 __be32;
typedef __u64 __le64;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
#endif

#ifndef __cplusplus
typedef _Bool bool;
#define true 1
#define false 0
#endif

/* Numbers of linux/bpf.h that programs name. */
#ifndef __LINUX_BPF_H__
#define __LINUX_BPF_H__
/* kinds of maps */

/* For bpf_map_update_elem. */
enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_EXIST = 2,
	BPF_F_LOCK = 4,
};

/* For map_flags. */
enum {
	BPF_F_NO_PREALLOC = 1U << 0,
	BPF_F_NO_COMMON_LRU = 1U << 1,
	BPF_F_NUMA_NODE = 1U << 2,
	BPF_F_RDONLY = 1U << 3,
	BPF_F_WRONLY = 1U << 4,
	BPF_F_STACK_BUILD_ID = 1U << 5,
	BPF_F_ZERO_SEED = 1U << 6,
	BPF_F_RDONLY_PROG = 1U << 7,
	BPF_F_WRONLY_PROG = 1U << 8,
	BPF_F_CLONE = 1U << 9,
	BPF_F_MMAPABLE = 1U << 10,
	BPF_F_INNER_MAP = 1U << 12,
};

/* For bpf_get_stackid and bpf_get_stack. */
enum {
	BPF_F_SKIP_FIELD_MASK = 0xffULL,
	BPF_F_USER_STACK = 1ULL << 8,
	BPF_F_FAST_STACK_CMP = 1ULL << 9,
	BPF_F_REUSE_STACKID = 1ULL << 10,
	BPF_F_USER_BUILD_ID = 1ULL << 11,
};

/* For per-CPU maps and bpf_task_storage_get. */
enum {
	BPF_F_INDEX_MASK = 0xffffffffULL,
	BPF_F_CURRENT_CPU = BPF_F_INDEX_MASK,
	BPF_LOCAL_STORAGE_GET_F_CREATE = 1ULL << 0,
};

/* For bpf_ringbuf_submit, bpf_ringbuf_output and bpf_ringbuf_query. */
enum {
	BPF_RB_NO_WAKEUP = 1ULL << 0,
	BPF_RB_FORCE_WAKEUP = 1ULL << 1,
};
enum {
	BPF_RB_AVAIL_DATA = 0,
	BPF_RB_RING_SIZE = 1,
	BPF_RB_CONS_POS = 2,
	BPF_RB_PROD_POS = 3,
};

struct bpf_spin_lock {
	__u32 val;
};

/* On the stack, and only for helpers to look into. */
struct bpf_dynptr {
	__u64 __opaque[2];
} __attribute__((aligned(8)));

struct bpf_lpm_trie_key {
	__u32 prefixlen;
	__u8 data[0];
};
#endif

/* arm64's registers, as libbpf's tracing macros read them in a kprobe (asm/ptrace.h). */
#ifndef SPRINGBOARD_ASM_PTRACE_H
#define SPRINGBOARD_ASM_PTRACE_H
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
#endif
struct pt_regs;

/* The kernel's types. Members are found again by name when a program is loaded (CO-RE). */
#pragma clang attribute push (__attribute__((preserve_access_index)), apply_to = record)

