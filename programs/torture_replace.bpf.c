// SPDX-License-Identifier: MIT OR Apache-2.0
/* What takes the place of `mark` in the programs of torture.bpf.c while they are hooked in. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

extern __u64 springboard_torture_hit(__u64 place, __u64 who, __u64 replaced) __ksym;

SEC("freplace/mark")
int other_mark(__u64 place, __u64 who)
{
	return springboard_torture_hit(place, who, 1) > 1;
}
