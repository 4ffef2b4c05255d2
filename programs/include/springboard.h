/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Stands in for springboard.h until a kernel is built: Linux's own headers, and none of the kernel's types.
 *
 * The build writes the kernel's own one to target/springboard/include, which comes before this folder
 * (`cargo xtask btf --header FILE` writes it elsewhere).
 */
#include <linux/bpf.h>
#include <asm/ptrace.h>
