/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The fixed-width integers that <linux/types.h> expects from the architecture (LP64, as on arm64).
 *
 * `clang -target bpf` finds no <asm/...> of its own; a PC's would be x86's. See asm/ptrace.h.
 */
#ifndef SPRINGBOARD_ASM_TYPES_H
#define SPRINGBOARD_ASM_TYPES_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;

#endif
