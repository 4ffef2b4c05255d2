/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The few `__kernel_` types that headers reached from <linux/types.h> name (LP64). */
#ifndef SPRINGBOARD_ASM_POSIX_TYPES_H
#define SPRINGBOARD_ASM_POSIX_TYPES_H

typedef long __kernel_long_t;
typedef unsigned long __kernel_ulong_t;
typedef __kernel_ulong_t __kernel_size_t;
typedef __kernel_long_t __kernel_ssize_t;
typedef int __kernel_pid_t;
typedef __kernel_long_t __kernel_off_t;
typedef long long __kernel_loff_t;

#endif
