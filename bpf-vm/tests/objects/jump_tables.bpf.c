// SPDX-License-Identifier: MIT OR Apache-2.0
/* A jump table and a table of labels as clang 22 writes them, in assembly that every clang takes. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

asm("	.section \"fentry/workload_call\",\"ax\",@progbits\n"
    ".Lstart:\n"
    "	.globl by_table\n"
    "	.type by_table,@function\n"
    "by_table:\n"
    "	r2 = *(u64 *)(r1 + 0)\n"
    "	r2 &= 3\n"
    "	r2 <<= 3\n"
    "	r3 = BPF.JT.0.0 ll\n"
    "	r3 += r2\n"
    "	r2 = *(u64 *)(r3 + 0)\n"
    /* gotox r2 */
    "	.quad 0x20d\n"
    ".Lone:\n"
    "	r4 = .Llabels ll\n"
    "	r4 = *(u64 *)(r4 + 8)\n"
    /* gotox r4 */
    "	.quad 0x40d\n"
    ".Ltwo:\n"
    "	r0 = 22 ll\n"
    "	exit\n"
    ".Lthree:\n"
    "	r0 = 33\n"
    "	exit\n"
    ".Lfour:\n"
    "	r0 = 44\n"
    "	exit\n"
    "	.size by_table, .-by_table\n"
    "	.section .jumptables,\"\",@progbits\n"
    "	.globl BPF.JT.0.0\n"
    "	.type BPF.JT.0.0,@object\n"
    "BPF.JT.0.0:\n"
    "	.quad .Lone - .Lstart\n"
    "	.quad .Lthree - .Lstart\n"
    "	.quad .Ltwo - .Lstart\n"
    "	.quad .Ltwo - .Lstart\n"
    "	.size BPF.JT.0.0, .-BPF.JT.0.0\n"
    "	.section .rodata,\"a\",@progbits\n"
    ".Llabels:\n"
    "	.quad .Ltwo\n"
    "	.quad .Lfour\n");
